"""RefCOCO, RefCOCO+ and RefCOCOg: referring expressions for single objects in COCO images."""

from __future__ import annotations

import io
import pickle
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from vrft.data.bad_records import BadRecords
from vrft.data.files import (
    BYTE_ORDER_MARKS,
    brief,
    decode_json,
    is_file_name,
    is_id,
    is_number,
    is_text,
    read_bytes,
    refuse_fractions,
    require_file,
    require_folder,
)
from vrft.data.formats.coco_entries import (
    AnnotationEntry,
    ImageEntry,
    InstancesFile,
    box_reason,
    clip,
    read_instances,
)
from vrft.data.formats.coco_fields import is_json_id
from vrft.data.image_folders import ImageFolders
from vrft.data.record import Record, Split, boxes_of
from vrft.data.records import RecordData
from vrft.errors import ConfigurationError
from vrft.types import Detection, Id

MAX_BYTES = 200_000_000
"""Maximum size of a file of references; the official ones have at most 60 million bytes."""

UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    struct.error,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
)
"""Errors that a broken pickle can raise."""


class ReferenceData(RecordData):
    """Referring expressions in RefCOCO's format, with the boxes of a COCO instances file. One sample per sentence."""

    noun = "expression"
    test_setting = "data.test_split"

    def __init__(
        self,
        references: str,
        instances: str,
        images: str,
        train_split: str = "train",
        val_split: str = "val",
        expressions: Literal["all", "first"] = "all",
        test_split: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the files, which are read when training starts.

        Args:
            references: `refs(unc).p`, or the same list as JSON; code in the pickle is never run.
            instances: COCO instances file with the boxes.
            images: folder of the images.
            train_split: split of the references to train on.
            val_split: held-out split, e.g. testA.
            expressions: use all sentences of a reference, or only the first.
            test_split: split for `test`, e.g. testB; default: the held-out one.
            kwargs: see `RecordData`.
        """
        super().__init__(**kwargs)
        self.references, self.instances, self.images = Path(references), Path(instances), Path(images)
        self.split_names: dict[Split, str] = {"train": train_split, "val": val_split}
        if test_split is not None:
            self.split_names["test"] = test_split
        self.expressions = expressions
        require_file("references", self.references, "refs(unc).p, or the same as JSON")
        require_file("instances", self.instances, "a COCO instances file")
        require_folder("images", self.images, "the images of the instances file")

    def splits(self) -> Collection[Split]:
        return self.split_names

    def image_folders(self, split: Split) -> ImageFolders:
        return ImageFolders("file_name", (self.images,))

    def records(self, split: Split, bad_records: BadRecords) -> list[Record]:
        references, name = read_references(self.references, self.encoding), self.split_names[split]
        splits = {entry["split"] for entry in references if isinstance(entry, dict) and is_text(entry.get("split"))}
        if name not in splits:
            raise ConfigurationError(
                f"data.{split}_split: no split {name!r} in {self.references}; it has {', '.join(sorted(splits))}"
            )
        objects = Objects(read_instances(self.instances, self.encoding))
        keys = [entry.get("ref_id") for entry in references if isinstance(entry, dict)]
        ids = Counter(key for key in keys if is_json_id(key))
        found: list[Record] = []
        for i, entry in enumerate(references):
            location = f"{self.references}: [{i}]"
            if not isinstance(entry, dict) or not is_text(entry.get("split")):
                bad_records.add(location, "expected a reference with a split")
            elif entry["split"] == name:
                location += f" (ref_id {brief(entry.get('ref_id'))})"
                reason = reference_reason(entry, ids) or objects.reason(entry)
                if reason is None:
                    found += self._sentences(entry, objects, location)
                else:
                    bad_records.add(location, reason)
        refuse_fractions(self.instances, (box.box for record in found for box in boxes_of(record)))
        return found

    def _sentences(self, entry: dict[str, Any], objects: Objects, location: str) -> Iterator[Record]:
        image = objects.images[entry["image_id"]]
        box = clip(objects.annotations[entry["ann_id"]].bbox, image)
        sentences = entry["sentences"][: 1 if self.expressions == "first" else None]
        for sentence in sentences:
            yield Record(
                (self.images / image.file_name,),
                location,
                image.id,
                sentence_text(sentence),
                (Detection(box, ""),),
                (image.width, image.height),
            )


class Objects:
    """Images and boxes of an instances file by id, checked only for the references that name them."""

    def __init__(self, content: InstancesFile) -> None:
        self.images: dict[Id, ImageEntry] = {entry.id: entry for entry in content.images if is_json_id(entry.id)}
        self.annotations: dict[Id, AnnotationEntry] = {
            entry.id: entry for entry in content.annotations if is_json_id(entry.id)
        }
        self.image_ids = Counter(entry.id for entry in content.images if is_json_id(entry.id))
        self.annotation_ids = Counter(entry.id for entry in content.annotations if is_json_id(entry.id))

    def reason(self, entry: dict[str, Any]) -> str | None:
        """Return why the object that a reference names is invalid, or None if it is valid."""
        image_id, annotation_id = entry["image_id"], entry["ann_id"]
        if self.image_ids[image_id] != 1:
            return f"{self.image_ids[image_id]} images have id {brief(image_id)}"
        if self.annotation_ids[annotation_id] != 1:
            return f"{self.annotation_ids[annotation_id]} annotations have id {brief(annotation_id)}"
        image, annotation = self.images[image_id], self.annotations[annotation_id]
        if annotation.image_id != image_id:
            return f"annotation {annotation_id} belongs to image {brief(annotation.image_id)}, not {image_id}"
        if not is_file_name(image.file_name):
            return f"image {image_id}: expected a file_name, got {brief(image.file_name)}"
        if not all(is_id(side) and is_number(side) and side > 0 for side in (image.width, image.height)):
            return f"image {image_id}: expected width and height, got {brief(image.width)} and {brief(image.height)}"
        if not isinstance(annotation.bbox, list) or not all(map(is_number, annotation.bbox)):
            return f"annotation {annotation_id}: expected bbox [x, y, width, height] in finite numbers"
        return box_reason(annotation.bbox, image, crowd=False)


def reference_reason(entry: dict[str, Any], ids: Counter[Id]) -> str | None:
    """Return why a reference itself is invalid, or None if it is valid."""
    for key in ("ref_id", "ann_id", "image_id"):
        if not is_json_id(entry.get(key)):
            return f"expected {key} to be a whole number or text, got {brief(entry.get(key))}"
    if ids[entry["ref_id"]] > 1:
        return f"the ref_id appears {ids[entry['ref_id']]} times"
    sentences = entry.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        return f"expected a list of sentences, got {brief(sentences)}"
    for i, sentence in enumerate(sentences):
        if not sentence_text(sentence):
            return f"sentences[{i}]: expected text in sent or raw"
    return None


def sentence_text(sentence: Any) -> str:
    """Return the text of a sentence: the authors' cleaned form, else the raw one, else ""."""
    texts = [sentence.get("sent"), sentence.get("raw")] if isinstance(sentence, dict) else []
    return next((text.strip() for text in texts if is_text(text)), "")


def read_references(path: Path, encoding: str) -> list[Any]:
    """Read references from JSON or the official pickle.

    Raises:
        ConfigurationError: the file is neither, is too large, or is a pickle with anything but lists, dicts, strings
            and numbers.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ConfigurationError(f"{path}: larger than {MAX_BYTES} bytes; expected a file of references")
    data = read_bytes(path)
    try:
        is_json = data.startswith(tuple(BYTE_ORDER_MARKS)) or data.lstrip()[:1] in (b"[", b"{")
        content = decode_json(data, encoding) if is_json else PlainUnpickler(data).load()
    except UNPICKLING_ERRORS as error:
        raise ConfigurationError(
            f"{path}: not a file of references: {brief(str(error) or type(error).__name__)}"
        ) from error
    if not isinstance(content, list):
        raise ConfigurationError(f"{path}: expected a list of references, got {brief(content)}")
    return content


SAFE_OPCODES = """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 EMPTY_LIST LIST APPEND APPENDS
EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"""
"""Pickle opcodes that build lists, dicts, strings and numbers. Tuples are excluded: nested ones may hash forever."""


class PlainUnpickler(pickle._Unpickler):
    """Unpickles lists, dicts, strings and numbers. Any other opcode, such as a call, raises an error.

    Based on the implementation in Python, because the one in C allocates a memo of the largest index in the file.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in SAFE_OPCODES.split())
    }

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")
