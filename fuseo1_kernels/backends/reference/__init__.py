"""The reference backend: survey and fuse in torch, one line per formula; readable and slow."""

from __future__ import annotations

from .backend import load as load
