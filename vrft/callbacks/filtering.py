"""Implement `python -m vrft filter`: measure success rates of training samples and select the samples to keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from vrft.callbacks.base import vision_module, vision_trainer
from vrft.data.datamodule import data_of
from vrft.data.difficulty import Difficulty, check_success
from vrft.data.files import read_bytes
from vrft.data.record_set import image_file
from vrft.data.records import RecordData
from vrft.data.success_rates import Entry, Header, Rule, record_ids, write_rates
from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir
from vrft.training.checks import check_prompt_lengths, warn_of_replaced_images
from vrft.training.module import VisionModule
from vrft.training.sampled import finite_scores, sample_answers
from vrft.types import Answer, PromptBatch
from vrft.utils.display import counted

Scores = list[float | None]


class Line(msgspec.Struct):
    """The scores of a sample in a rank's file, before the files are merged."""

    id: str
    scores: Scores


class Filter(Callback):
    """Samples answers to each training sample, scores them and writes `success_rates.jsonl` in the run's folder.

    Each rank appends its scores to its own file after every batch, so that an interrupted command can continue.
    """

    def __init__(self, samples: int, rule: Rule) -> None:
        if samples < 1:
            raise ConfigurationError(f"samples: expected at least 1, got {samples}")
        rule.check()
        self.samples, self.rule = samples, rule

    def check(self, module: VisionModule) -> None:
        """Raise ConfigurationError unless the module has the rule's reward and its scores can be a success."""
        if self.rule.reward not in module.rewards:
            raise ConfigurationError(
                f"reward: expected one of model.rewards, {', '.join(module.rewards)}, which tells success; got "
                f"{self.rule.reward or 'none'}"
            )
        check_success("success", self.rule.success, self.rule.reward, module.rewards[self.rule.reward])

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, self.run = vision_module(pl_module), RunDir.of(trainer)
        data = data_of(trainer)
        assert isinstance(data, RecordData)
        self.ids = record_ids(data.evaluated_set().records, data.image_folders("train"))
        self.asked = asked_of(module, trainer, self.samples, self.rule.reward)
        self.known = dict(self._read())
        vision_trainer(trainer).strategy.barrier("success rates")  # before a rank writes to its file
        known = sum(name in self.known for name in self.ids)
        rank_zero_info(f"filter: {self.samples} answers to each of {counted(len(self.ids), 'training sample')}")
        if known:
            rank_zero_info(f"filter: {known} of them were answered before, in {self.run}")
        self.part = self.run.success_rates_of_rank(trainer.global_rank)
        mine = [*_lines(self.part, self.asked)]
        head = msgspec.json.encode({"asked": self.asked})
        self.part.write_bytes(b"".join(part + b"\n" for part in (head, *map(msgspec.json.encode, mine))))
        module.answering = self.answer

    def _read(self) -> Iterator[tuple[str, Scores]]:
        """Yield the ids and scores that earlier commands with the same settings have written."""
        for path in [self.run.success_rates, *self.run.success_rates_files()]:
            if path.is_file():
                yield from ((line.id, line.scores) for line in _lines(path, self.asked))

    def answer(self, module: VisionModule, batch: PromptBatch) -> list[Answer]:
        """Sample and score answers to P training samples, unless all have scores already. Return an empty list."""
        check_prompt_lengths(batch, module.max_completion_length, module.policy.max_positions)
        missing = not all(self.ids[sample.index] in self.known for sample in batch.samples)
        if not module.trainer.strategy.reduce_boolean_decision(missing, all=False):
            return []
        warn_of_replaced_images(batch)
        sampled = sample_answers(module, batch, self.samples, module.sampling)
        scores = finite_scores(module, self.rule.reward, sampled.answers, sampled.samples)
        data, lines = data_of(module.trainer), []
        for p, sample in enumerate(batch.samples):
            if data.is_owned_by_rank(sample) and self.ids[sample.index] not in self.known:
                mine = scores[p * self.samples : (p + 1) * self.samples]
                unread = "replaced" in sample.metadata
                lines.append(Line(self.ids[sample.index], [None] * self.samples if unread else mine))
        with self.part.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        return []

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer = vision_trainer(trainer)
        trainer.strategy.barrier("success rates")
        if not trainer.is_global_zero:
            return
        found, data = dict(self._read()), data_of(trainer)
        assert isinstance(data, RecordData)
        if missing := sum(name not in found for name in self.ids):
            raise ConfigurationError(
                f"filter: {missing} of {counted(len(self.ids), 'training sample')} have no scores yet, e.g. because of "
                "trainer.limit_predict_batches; the same command continues"
            )
        entries = []
        for index, (name, record) in enumerate(zip(self.ids, data.evaluated_set().records, strict=True)):
            rate = self.rule.rate(found[name])
            about = record.image_id, record.query, image_file(data.evaluated_set(), index) or ""
            entries.append(Entry(name, index, *about, found[name], rate, self.rule.keeps(rate)))
        write_rates(self.run.success_rates, Header(self.asked, self.rule, len(entries)), entries)
        for part in self.run.success_rates_files():
            part.unlink()
        self._say(entries)

    def _say(self, entries: Sequence[Entry]) -> None:
        """Print how many samples are kept and left out, and how to train on the kept ones."""
        rule, path = self.rule, self.run.success_rates
        print(f"success rates: {path} ({rule.reward} of at least {rule.success:g})")
        kept = sum(entry.kept for entry in entries)
        without = sum(entry.rate is None for entry in entries)
        rates = [entry.rate for entry in entries if not entry.kept]
        print(f"kept: {kept} of {len(entries)}; left out: {rule.left_out(rates)}")
        if without:
            print(f"kept without a rate, since {rule.reward} does not apply or an image can't be read: {without}")
        if kept:
            print(f"to train on the kept samples: --data.keep={path}")


def rule_of(
    difficulty: Difficulty | None, reward: str | None, success: float | None, lowest: float, highest: float
) -> Rule:
    """Return a rule. Reward and threshold default to those of `model.difficulty`."""
    if difficulty is not None and reward in (None, difficulty.reward):
        reward = difficulty.reward
        success = difficulty.success if success is None else success
    return Rule(reward or "", 0.5 if success is None else success, lowest, highest)


def asked_of(module: VisionModule, trainer: Trainer, samples: int, reward: str) -> dict[str, Any]:
    """Return, as plain values, everything that the scores depend on except the samples."""
    sampling, checkpoint = module.sampling, trainer.ckpt_path
    return {
        "checkpoint": module.policy.checkpoint,
        "weights": [str(checkpoint), Path(checkpoint).stat().st_mtime] if checkpoint else None,
        "task": type(module.task).__name__,
        "template": module.task.template,
        "sampling": [sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p],
        "samples": samples,
        "seed": module.seed,
        "reward": reward,
        "settings": module.settings,
    }


def _lines(path: Path, asked: dict[str, Any]) -> Iterator[Line]:
    """Yield the lines of a file up to a partial line. Yield nothing if its first line has other settings."""
    lines = read_bytes(path).splitlines() if path.is_file() else []
    try:
        head = msgspec.json.decode(lines[0]) if lines else None
        if not isinstance(head, dict) or head.get("asked") != asked:
            return
        for line in lines[1:]:
            yield msgspec.json.decode(line, type=Line)
    except (msgspec.DecodeError, RecursionError):
        return
