"""A run that continues another takes only what is proved to be this merge's, byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from fuseo1_kernels.checkpoint.header import read_header
from fuseo1_kernels.checkpoint.identity import FileIdentity
from fuseo1_kernels.checkpoint.records import intact_lines
from support.checkpoint_files import tree, write_json
from support.forked import Forks
from support.interrupted import (
    ARGV,
    TENSORS,
    Tree,
    alone,
    journaled,
    partial_of,
    small_family,
    undisturbed,
)
from support.models import Family, model_config
from support.processes import Run, merge_json, run
from support.sabotage import CHANGES

DONE = 4


@pytest.fixture
def family(tmp_path: Path, forks: Forks) -> Family:
    """A merge that was killed when four of its six tensors were complete, in three of its four shards."""
    family = small_family(tmp_path)
    killed = forks.run(family.config, family.out, *ARGV, sabotage=[("kill_after", DONE)])
    assert killed.code == -signal.SIGKILL, killed
    assert journaled(family.out) == DONE and not family.out.exists()
    return family


def merge(family: Family, *options: object) -> int:
    """Run the command to its good end; how many tensors were there already."""
    resumed: int = merge_json(family.config, family.out, *ARGV, *options)["resumed"]
    return resumed


def test_what_is_complete_is_not_merged_again(family: Family) -> None:
    expected = undisturbed(family, *ARGV)
    said = merge_json(family.config, family.out, *ARGV)
    written = {name: t.nbytes for name, t in family.states[0].items()}
    assert said["resumed"] == DONE
    assert said["bytes_written"] == sum(list(written.values())[DONE:])
    # Of three models, once to survey and once to fuse.
    assert said["bytes_read"] == 2 * 3 * said["bytes_written"]
    assert alone(family.out) == expected


@pytest.mark.parametrize(
    "options", [("--threads", "2"), ("--max-memory", "20MiB"), ("--backend", "reference")]
)
def test_what_changes_no_byte_may_change(options: tuple[str, ...], family: Family) -> None:
    expected = undisturbed(family, *ARGV)
    assert merge(family, *options) == DONE
    assert alone(family.out) == expected


# --- damage ------------------------------------------------------------------------------


def shard(number: int) -> str:
    return f"model/model-{number:05d}-of-00004.safetensors"


def flip(name: str, place: int) -> Callable[[Path], None]:
    """Flip a bit of a byte."""

    def damage(partial: Path) -> None:
        content = bytearray((partial / name).read_bytes())
        content[place] ^= 1
        (partial / name).write_bytes(content)

    return damage


def resize(name: str, by: int) -> Callable[[Path], None]:
    def damage(partial: Path) -> None:
        os.truncate(partial / name, (partial / name).stat().st_size + by)

    return damage


def edit_journal(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    """Change the journal's lines after the mark, the first of which is the identity's."""

    def damage(partial: Path) -> None:
        file = partial / "journal"
        mark, *lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join([mark, *change(lines)]))

    return damage


def flip_line(number: int) -> Callable[[Path], None]:
    def change(lines: list[bytes]) -> list[bytes]:
        line = lines[number]
        lines[number] = line[:30] + bytes([line[30] ^ 1]) + line[31:]
        return lines

    return edit_journal(change)


def add_line(record: object) -> Callable[[Path], None]:
    """A line whose own checksum is right."""
    text = json.dumps(record).encode()
    line = xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"
    return edit_journal(lambda lines: [*lines, line])


def swap(partial: Path) -> None:
    """Two tensors of one size, each in the other's place."""
    a, b = partial / shard(2), partial / shard(3)
    content = b.read_bytes()
    b.write_bytes(content[:-256] + a.read_bytes()[-256:])


CLAIM = {"model.norm.weight": [xxhash.xxh3_128_hexdigest(b"other"), [1.0, 2.0], 1]}

DAMAGES: dict[str, tuple[Callable[[Path], None], int]] = {
    "a tensor's first byte": (flip(shard(3), -256), DONE - 1),
    "a tensor's last byte": (flip(shard(2), -1), DONE - 1),
    "a byte of a tensor that is one of several": (flip(shard(4), -292), DONE - 1),
    "a byte of a header": (flip(shard(2), 20), DONE),
    "a header's length": (flip(shard(2), 0), DONE),
    "another tensor's bytes": (swap, DONE - 1),
    "a shard cut short": (resize(shard(2), -1), DONE - 1),
    "an empty shard": (lambda partial: os.truncate(partial / shard(2), 0), DONE - 1),
    "a shard too long": (resize(shard(2), 1), DONE - 1),
    "a shard deleted": (lambda partial: (partial / shard(2)).unlink(), DONE - 1),
    "all shards deleted": (lambda partial: shutil.rmtree(partial / "model"), 0),
    "a stranger beside the shards": (lambda p: (p / "model/x").touch(), DONE),
    "the journal's last line torn": (resize("journal", -10), DONE - 1),
    "only its newline torn": (resize("journal", -1), DONE),
    "a byte of its last line": (flip_line(-1), DONE - 1),
    "a byte of a line between": (flip_line(2), DONE - 1),
    "a byte of its first line": (flip_line(0), 0),
    "a line too few": (edit_journal(lambda lines: lines[:-1]), DONE - 1),
    "a line twice": (edit_journal(lambda lines: [*lines, lines[-1]]), DONE),
    "lines before the one that says of what": (edit_journal(lambda lines: lines[::-1]), 0),
    "a line that claims too much": (add_line({"tensors": CLAIM}), DONE),
    "garbage at its end": (edit_journal(lambda lines: [*lines, b"\0\xff garbage"]), DONE),
    "garbage between": (edit_journal(lambda lines: [*lines[:3], b"\n {}\n", *lines[3:]]), DONE),
    "nothing but garbage": (edit_journal(lambda _: [bytes(range(256)) * 9]), 0),
    "nothing but the mark": (edit_journal(lambda _: []), 0),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_merged_again(name: str, family: Family) -> None:
    expected = undisturbed(family, *ARGV)
    damage, held = DAMAGES[name]
    before = tree(partial_of(family.out))
    damage(partial_of(family.out))
    assert tree(partial_of(family.out)) != before
    assert merge(family) == held
    assert alone(family.out) == expected


def test_a_torn_line_spoils_no_other(family: Family, forks: Forks) -> None:
    expected = undisturbed(family, *ARGV)
    resize("journal", -10)(partial_of(family.out))
    argv = (family.config, family.out, *ARGV)
    assert forks.run(*argv, sabotage=[("kill_after", 2)]).code == -signal.SIGKILL
    assert merge(family) == DONE - 1 + 2
    assert alone(family.out) == expected


# --- another merge -----------------------------------------------------------------------


def later(family: Family) -> None:
    file = next(family.target(2).glob("*-00002-of-*.safetensors"))
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1_000_000))


def copied(family: Family) -> None:
    """The same bytes and times, in another file."""
    file = next(family.base.glob("*-00001-of-*.safetensors"))
    shutil.copy2(file, file.with_suffix(".copy"))
    file.with_suffix(".copy").replace(file)


def other_target(family: Family) -> None:
    shutil.copytree(family.target(1), family.home / "other")
    family.configure(models=[{"model": str(family.home / n)} for n in ("other", "target2")])


def other_order(family: Family) -> None:
    family.configure(models=[{"model": str(family.target(n))} for n in (2, 1)])


OTHERS: dict[str, tuple[Callable[[Family], object], tuple[str, ...], tuple[str, ...]]] = {
    "select_topk": (
        lambda family: family.configure(parameters={"select_topk": 0.5}),
        (),
        ("another config",),
    ),
    "dtype": (lambda family: family.configure(dtype="float32"), (), ("another config",)),
    "order": (other_order, (), ("another config",)),
    "model": (other_target, (), ("other models", "model-0000")),
    "shard size": (lambda _: None, ("--shard-size", "600"), ("another config or other options",)),
    "nonfinite": (lambda _: None, ("--nonfinite", "propagate"), ("begun with --nonfinite error",)),
    "time": (later, (), ("target2/model-00002-of-00002.safetensors changed since",)),
    "file": (copied, (), ("base/model-00001-of-00002.safetensors changed since",)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_merge_is_not_continued(name: str, family: Family) -> None:
    change, options, words = OTHERS[name]
    change(family)
    expected = undisturbed(family, *ARGV, *options)
    before = tree(family.out.parent)
    refused = run(family.config, family.out, *ARGV, *options)
    assert refused.code == 1
    for word in (str(partial_of(family.out)), "unfinished merge", "--no-resume", *words):
        assert word in refused.err, word
    assert tree(family.out.parent) == before
    assert merge(family, *options, "--no-resume") == 0
    assert alone(family.out) == expected


def dated_back(file: Path) -> None:
    """Other bytes in the same place, and the time of modification as before."""
    CHANGES["is rewritten and dated back"](file)


def linked(file: Path) -> None:
    """As a backup by hard links gives it another name, or a cache that stores equal files once."""
    os.link(file, file.parents[1] / file.name)


def dated_back_and_linked(file: Path) -> None:
    linked(file)
    dated_back(file)


def with_other_rights(file: Path) -> None:
    file.chmod(0o640)


#: What changes a file's time of change alone.
TOUCHES = (linked, with_other_rights, dated_back, dated_back_and_linked)


@pytest.mark.parametrize("touch", TOUCHES)
def test_what_came_from_a_file_that_was_touched_is_merged_anew(
    touch: Callable[[Path], None], family: Family, forks: Forks
) -> None:
    """Nobody can tell whether it has other bytes. What came from other files alone stays."""
    file = next(family.target(1).glob("*-00001-of-*.safetensors"))
    ours = set(read_header(file).tensors)
    lines = intact_lines((partial_of(family.out) / "journal").read_bytes())
    done = {name for _, text in lines for name in json.loads(text).get("tensors", ())}
    assert len(done) == DONE and 0 < len(done & ours) < DONE
    touch(file)
    expected = undisturbed(family, *ARGV)
    killed = forks.run(family.config, family.out, *ARGV, sabotage=[("kill_after", 1)])
    assert killed.code == -signal.SIGKILL
    said = merge_json(family.config, family.out, *ARGV)
    assert said["resumed"] == DONE - len(done & ours) + 1
    assert alone(family.out) == expected


def test_which_file_was_touched_is_said(family: Family) -> None:
    file = next(family.target(1).glob("*-00001-of-*.safetensors"))
    linked(file)
    (note,) = (n for n in merge_json(family.config, family.out, *ARGV)["notes"] if str(file) in n)
    assert "merged anew" in note


def test_a_finished_merge_of_a_source_that_was_rewritten(family: Family) -> None:
    merge(family)
    dated_back(next(family.target(1).glob("*.safetensors")))
    refuses(run(family.config, family.out, *ARGV), family.out, "not empty", "--overwrite")


def test_another_version_is_not_continued(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuseo1_kernels.plan.fingerprint.__version__", "99.0")
    refused = run(family.config, family.out, *ARGV)
    assert refused.code == 1 and "begun by fuseo1-kernels" in refused.err


def test_no_resume_starts_afresh(family: Family) -> None:
    expected = undisturbed(family, *ARGV)
    (partial_of(family.out) / "model" / "x").touch()
    assert merge(family, "--no-resume") == 0
    assert alone(family.out) == expected


def test_small_files_are_those_of_the_last_run(family: Family) -> None:
    write_json(family.base / "config.json", model_config(initializer_range=0.5))
    expected = undisturbed(family, *ARGV)
    assert merge(family) == DONE
    assert alone(family.out) == expected


# --- a merge that has ended, and directories that are not ours ---------------------------


def refuses(result: Run, *words: object) -> None:
    assert result.code == 1 and result.err.count("error: ") == 1
    assert json.loads(result.out).keys() == {"error"}
    for word in words:
        assert str(word) in result.err, word


def test_the_same_command_again(family: Family) -> None:
    merge(family)
    before = {file: FileIdentity.of(file.stat()) for file in family.out.rglob("*")}
    said = merge_json(family.config, family.out, *ARGV)
    assert said["resumed"] == TENSORS and said["bytes_read"] == said["bytes_written"] == 0
    assert any("was there already" in note for note in said["notes"])
    assert {file: FileIdentity.of(file.stat()) for file in family.out.rglob("*")} == before
    assert merge(family, "--overwrite") == 0


def damaged(change: str, family: Family) -> None:
    file = family.out / "model-00002-of-00004.safetensors"
    if change == "size":
        os.truncate(file, file.stat().st_size - 1)
    elif change == "missing":
        file.unlink()
    elif change == "small file":
        (family.out / "fuseo1_checksums.json").unlink()
    else:
        family.configure(parameters={"select_topk": 0.5})


@pytest.mark.parametrize("change", ["size", "missing", "small file", "config"])
def test_what_is_not_this_merges_model_is_refused(change: str, family: Family) -> None:
    merge(family)
    damaged(change, family)
    before: Tree = tree(family.out)
    refuses(run(family.config, family.out, *ARGV), family.out, "not empty", "--overwrite")
    assert alone(family.out) == before
    merge(family, "--overwrite")
    assert alone(family.out) == undisturbed(family, *ARGV)


@pytest.mark.parametrize("options", [(), ("--no-resume",), ("--overwrite",)])
def test_what_is_not_ours_is_not_touched(options: tuple[str, ...], family: Family) -> None:
    (partial_of(family.out) / "journal").write_text("Dear diary")
    before = tree(family.home)
    refuses(run(family.config, family.out, *ARGV, *options), partial_of(family.out), "not made by")
    assert tree(family.home) == before


def test_no_resume_refuses_a_model_that_is_there(family: Family) -> None:
    """It is not taken for this merge's own result: it may be what the user wants made again."""
    merge_json(family.config, family.out, *ARGV)
    before = tree(family.out)
    failed = run(family.config, family.out, *ARGV, "--no-resume")
    assert failed.code == 1 and "--overwrite" in failed.err
    assert tree(family.out) == before
    assert (
        merge_json(family.config, family.out, *ARGV, "--no-resume", "--overwrite")["resumed"] == 0
    )
