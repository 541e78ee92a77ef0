"""Decode untrusted XML."""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

DECLARATION = re.compile(r"\s*<\?xml\s[^>]*?encoding\s*=\s*[\"']([A-Za-z][\w.-]*)[\"'][^>]*\?>")


class PlainTreeBuilder(TreeBuilder):
    """Builds a tree, but refuses document types, whose entities could expand without bound or include files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> Any:
        raise ValueError("it has a document type (<!DOCTYPE>), which is refused because it can define entities")


def declared_encoding(data: bytes) -> str | None:
    """Return the encoding that an XML file declares.

    >>> declared_encoding(b"<?xml version='1.0' encoding='gb2312'?><a/>")
    'gb2312'
    """
    found = DECLARATION.match(data[:200].decode("latin-1"))
    return found[1] if found else None


def decode_xml(text: str) -> Element:
    """Decode XML, ignoring its declared encoding.

    Raises:
        ValueError: the text is not well formed, or has a document type.
    """
    parser = XMLParser(target=PlainTreeBuilder())
    try:
        parser.feed(text)
        root: Element = parser.close()
    except ParseError as error:
        raise ValueError(f"not well-formed XML: {error}") from error
    return root
