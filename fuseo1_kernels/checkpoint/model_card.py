"""README.md of a merged model: the hub's front matter, sources, recipe, versions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import printable
from .files import reading
from .hub import split_hub_id
from .layout import MODEL_CARD

# A card is read as far as its front matter may go.
_FRONT = 64 << 10
_LICENSE = re.compile(
    r"^(license(?:_name|_link)?):[ \t]*[\"']?([\w.:/+-]+)[\"']?[ \t]*$", re.MULTILINE
)


def model_card(
    *,
    name: str,
    recipe_yaml: str,
    base: str | None,
    targets: Sequence[str],
    method: str,
    dtype: str,
    versions: Mapping[str, str],
    license: Mapping[str, str],
    notes: Sequence[str] = (),
) -> bytes:
    """Return the card's content, in UTF-8.

    Only hub ids go into its front matter: the hub refuses a card whose base_model is a local path.

    Args:
        name: the merged model's name.
        recipe_yaml: the merge's config.
        base: the base's hub id or name; None for a merge without one.
        targets: those of the other models.
        method: the merge method.
        dtype: the dtype of most merged elements, by torch's name.
        versions: version by program.
        license: the sources' common one, as `read_license` returns it; {} if there is none.
        notes: a line for each key of the config, as it was given, that has no effect.
    """
    models = [*([] if base is None else [base]), *targets]
    # A model and its adapter stand in one name.
    parts = [part for model in models for part in model.split("+")]
    repos = [split[0] for split in map(split_hub_id, parts) if split]
    front = ["library_name: transformers", "tags:", "- merge", "- fuseo1-kernels", f"- {method}"]
    # A JSON string is a YAML string.
    front += [f"{key}: {json.dumps(value)}" for key, value in license.items()]
    if repos:
        front += ["base_model:", *(f"- {json.dumps(repo)}" for repo in dict.fromkeys(repos))]
        front += ["base_model_relation: merge"]
    fence = "```"
    while fence in recipe_yaml:
        fence += "`"
    lines = [
        "---",
        *front,
        "---",
        "",
        f"# {name}",
        "",
        f"A merge of {len(targets)} models with the method `{method}`, written as {dtype}.",
        "",
        *([] if base is None else [f"- base: `{base}`"]),
        *(f"- merged: `{target}`" for target in targets),
        "",
        "## Recipe",
        "",
        f"{fence}yaml",
        recipe_yaml.rstrip("\n"),
        fence,
        *(["", "Without effect:", ""] if notes else []),
        *(f"- {printable(note)}" for note in notes),
        "",
        "## Made with",
        "",
        *(f"- {package} {version}" for package, version in versions.items()),
    ]
    return ("\n".join(lines) + "\n").encode("utf-8")


def read_license(path: Path) -> dict[str, str]:
    """Return the license that the card of the model in `path` states: license, license_name, license_link.

    {} if there is no card, or none that says so plainly. Raises CheckpointError.
    """
    card = path / MODEL_CARD
    if not card.exists():
        return {}
    with reading(card) as stream:
        text = stream.read(_FRONT).decode("utf-8", "replace").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}
    found = dict(_LICENSE.findall(text[3:].partition("\n---")[0]))
    if found.get("license") == "other":  # the name and the link say which
        return found
    return {key: value for key, value in found.items() if key == "license"}
