"""`python -m fuseo1_kernels.verify`: damage of any byte is found, and tensors that are not their sources'."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_checkpoints, verify_model
from fuseo1_kernels.checkpoint import checksums
from fuseo1_kernels.checkpoint.header import TensorInfo, read_header
from fuseo1_kernels.checkpoint.source import Source
from fuseo1_kernels.cli.verify import main
from fuseo1_kernels.errors import CheckpointError, MergeError, printable
from support.checkpoint_files import tree
from support.models import Family, base_state, make_family, tuned, write_model
from support.paths import ROOT
from support.processes import spawn
from support.watching import watch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    family = make_family(tmp_path_factory.mktemp("made"))
    merge_checkpoints(family.config, family.out, shard_size=40_000)
    yield family


@pytest.fixture
def model(made: Family, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(made.out, tmp_path / "model")


def flip(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 0x10
    file.write_bytes(data)


def problems(model: Path) -> tuple[str, ...]:
    return verify_model(model).problems


def test_a_whole_model(made: Family) -> None:
    before = tree(made.out)
    result = verify_model(made.out)
    assert result.problems == ()
    assert result.tensors == len(made.states[0])
    assert result.files == len(list(made.out.iterdir())) - 1  # all but the checksums themselves
    assert result.recomputed == ()
    assert tree(made.out) == before


def test_every_byte_of_a_shard_counts(model: Path) -> None:
    """A flipped byte in the length, the header, its padding, or a tensor's first or last byte."""
    for file in sorted(model.glob("*.safetensors")):
        header = read_header(file)
        spots = {0: "header", 9: "header"}
        first = min(info.offset for info in header.tensors.values())
        spots[first - 1] = "header"
        for info in header.tensors.values():
            spots[info.offset] = spots[info.offset + info.nbytes - 1] = info.name
        for offset, what in spots.items():
            flip(file, offset)
            [problem] = problems(model)
            assert str(file) in problem and what in problem
            flip(file, offset)
    assert problems(model) == ()


def test_every_small_file_counts(model: Path) -> None:
    small = [p for p in model.iterdir() if p.suffix != ".safetensors" and p.name != checksums.FILE]
    assert len(small) == 6
    for file in small:
        data = file.read_bytes()
        for damage in (data[:-1], data + b" ", data[:5] + b"~" + data[6:]):
            file.write_bytes(damage)
            assert any(str(file) in problem for problem in problems(model)), file
        file.unlink()
        assert f"{file}: is missing" in problems(model)
        file.write_bytes(data)


def test_a_shard_that_is_cut_or_gone(model: Path) -> None:
    file = next(model.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 1)
    [problem] = problems(model)
    assert str(file) in problem and "bytes, was written with" in problem
    file.unlink()
    assert problems(model) == (f"{file}: is missing",)


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_single_bits_anywhere(count: int, model: Path) -> None:
    """Each of them is found, in a file chosen by chance or by its size, and said with the file's name."""
    files = sorted(model.iterdir())
    sizes = [file.stat().st_size for file in files]
    random = Random(count)
    for number in range(count):
        [file] = random.choices(files, sizes if number % 2 else None)
        whole = file.read_bytes()
        place, bit = random.randrange(len(whole)), 1 << random.randrange(8)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        try:
            found = problems(model)
        except CheckpointError as error:
            found = (str(error),)
        assert any(str(file) in problem for problem in found), (file, place, bit)
        assert len(" ".join(found)) < 2000 and " ".join(found).isprintable()
        file.write_bytes(whole)
    assert problems(model) == ()


@pytest.mark.parametrize("length", [0, 2**31, 2**40, 2**56, 2**63, 2**64 - 1])
def test_lengths_of_headers_that_nothing_has(length: int, model: Path) -> None:
    """The other shards are checked all the same."""
    first, *others = sorted(model.glob("*.safetensors"))
    data = first.read_bytes()
    first.write_bytes(length.to_bytes(8, "little") + data[8:])
    flip(others[0], -1)
    result = verify_model(model)
    assert len(result.problems) == 2
    assert result.problems[0].startswith(f"{first}: its header differs from what was written")
    assert f"{others[0]}: tensor " in result.problems[1]
    assert result.tensors == sum(len(read_header(file).tensors) for file in others)


def test_an_edited_readme_does_not_hide_the_weights(model: Path) -> None:
    """Neither from the checksums nor from being merged again."""
    (model / "README.md").write_text("Edited.\n")
    result = verify_model(model, recompute=3)
    assert [Path(p.partition(":")[0]).name for p in result.problems] == ["README.md"]
    assert result.tensors == 39 and len(result.recomputed) == 3
    last = sorted(model.glob("*.safetensors"))[-1]
    flip(last, -1)
    assert [str(last) in problem for problem in problems(model)] == [False, True]


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def grow(file: Path) -> None:
    os.truncate(file, 1 << 40)


@pytest.mark.parametrize("name", ["README.md", "model-00002-of-00003.safetensors", checksums.FILE])
@pytest.mark.parametrize("change", [fifo, directory, device, loop, grow])
def test_what_is_no_file(change: Callable[[Path], None], name: str, model: Path) -> None:
    change(model / name)
    if name == checksums.FILE:
        with pytest.raises(CheckpointError, match=name):
            verify_model(model)
        return
    [problem] = problems(model)
    assert problem.startswith(f"{model / name}: ")


@pytest.mark.parametrize("name", ["x" * 5000, "a\x1b[2Jb", "a\nb", "\udcff", "1_Pooling/gone"])
def test_names_that_no_file_has(name: str, model: Path) -> None:
    data = json.loads((model / checksums.FILE).read_text())
    del data["checksum"]
    data["files"][name] = vars(checksums.FileRecord.of(b"x"))
    data["tensors"][name] = {"checksum": "0" * 32, "energy": []}
    (model / checksums.FILE).write_bytes(checksums.seal(data))
    if name == "\udcff":
        with pytest.raises(CheckpointError, match="not valid Unicode"):
            verify_model(model)
    else:
        file, tensor = problems(model)
        assert printable(str(model / name)) in file and "other tensors" in tensor
        assert file.isprintable() and tensor.isprintable()


def test_weights_that_the_merge_did_not_write(model: Path) -> None:
    """A file that loaders would prefer to the merged ones, and one that brings an adapter."""
    shutil.copy(next(model.glob("model-00001*")), model / "model.safetensors")
    (model / "adapter_config.json").write_text("{}")
    for name, problem in zip(
        ("adapter_config.json", "model.safetensors"), problems(model), strict=True
    ):
        assert f"{name}: is used as weights, but was not written by the merge" in problem


def test_names_that_lead_out_of_the_model(model: Path) -> None:
    data = json.loads((model / checksums.FILE).read_text())
    del data["checksum"]
    data["files"]["../secret"] = vars(checksums.FileRecord.of(b"x"))
    (model.parent / "secret").write_bytes(b"x")
    (model / checksums.FILE).write_bytes(checksums.seal(data))
    with pytest.raises(CheckpointError, match=r"'\.\./secret' is no file of the model"):
        verify_model(model)


def test_what_is_no_merged_model(made: Family, tmp_path: Path) -> None:
    partial = tmp_path / "model.partial"
    partial.mkdir()
    for path in (made.base, partial):
        with pytest.raises(CheckpointError, match="is missing; only models merged by fuseo1"):
            verify_model(path)
    (partial / "journal").touch()
    for path, said in (
        (partial, "an unfinished merge; give the merge command again"),
        (tmp_path / "none", "no such directory"),
    ):
        with pytest.raises(CheckpointError) as caught:
            verify_model(path)
        assert str(caught.value) == f"{path}: {said}"


# --- against the sources -----------------------------------------------------------------


def test_a_sample_of_tensors_or_all(made: Family) -> None:
    samples = [set(verify_model(made.out, recompute=5, seed=s).recomputed) for s in (0, 0, 1)]
    assert all(len(sample) == 5 for sample in samples)
    assert samples[0] == samples[1] != samples[2]
    for recompute in (1000, None):
        result = verify_model(made.out, recompute=recompute)
        assert result.problems == () and set(result.recomputed) == set(made.states[0])


@pytest.mark.parametrize("options", [{"crop_embeddings": True}, {"nonfinite": "propagate"}])
def test_options_that_the_config_does_not_tell(options: dict[str, Any], tmp_path: Path) -> None:
    base = base_state()
    other = tuned(base_state(vocab=260), 1)
    bad = tuned(base, 1)
    bad["model.norm.weight"][3] = torch.nan
    states = [base, other if "crop_embeddings" in options else bad]
    family = make_family(tmp_path, states, tokenizer={})
    merge_checkpoints(family.config, family.out, **options)
    assert verify_model(family.out, recompute=None).problems == ()


def test_a_source_that_is_another_by_now(tmp_path: Path) -> None:
    family = make_family(tmp_path)
    merge_checkpoints(family.config, family.out)
    changed = dict(family.states[1])
    name = "model.layers.1.mlp.up_proj.weight"
    changed[name] = changed[name] + 0.5
    write_model(family.target(1), changed)
    result = verify_model(family.out, recompute=None)
    assert result.problems == (
        f"{family.out / 'model.safetensors'}: tensor {name!r} is not what its sources give",
    )
    write_model(family.target(1), changed | {name: changed[name][:5]})
    with pytest.raises(MergeError, match="do not fit together"):
        verify_model(family.out, recompute=1)
    shutil.rmtree(family.target(1))
    with pytest.raises(MergeError, match="target1"):
        verify_model(family.out, recompute=1)
    assert verify_model(family.out).problems == ()


# --- the page cache ----------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_read_leaves_the_page_cache_if_it_was_not_there(
    cached: bool, made: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's tensors, and those of the sources of each that is merged again."""
    forgotten: Counter[str] = Counter()

    def noted(source: Source, info: TensorInfo, *part: int) -> None:
        assert part == ()  # all of it
        forgotten[Path(source.name).name] += 1

    monkeypatch.setattr(Source, "is_cached", lambda self, info: cached)
    watch(monkeypatch, Source, "forget", noted)
    result = verify_model(made.out, recompute=5)
    assert result.problems == ()
    sources = dict.fromkeys(("base", "target1", "target2"), 5)
    assert forgotten == ({} if cached else {made.out.name: result.tensors, **sources})


# --- the command line --------------------------------------------------------------------


def test_exit_codes_and_words(
    made: Family, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(made.out), "--recompute", "3"]) == 0
    out = capsys.readouterr().out
    assert f"{made.out}: " in out and "39 tensors, 3 merged again: all as written" in out
    flip(model / "config.json", 3)
    assert main([str(model), "--quiet"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"problem: {model / 'config.json'}: differs from what was written\n"
    assert main([str(model), "--json", "--quiet"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"]
    assert main([str(made.base)]) == 1
    assert capsys.readouterr().err.startswith("fuseo1-verify: error: ")
    assert main([str(model)]) == 1
    assert ": 1 problem (" in capsys.readouterr().out  # one is no plural
    for count in ("-1", "some", "1.5"):
        with pytest.raises(SystemExit):
            main(["model", "--recompute", count])
        assert "neither a number of tensors nor `all`" in capsys.readouterr().err


def test_the_command_has_the_name_that_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: fuseo1-verify ")
    project = (ROOT / "pyproject.toml").read_text()
    assert 'fuseo1-merge = "fuseo1_kernels.merge:main"\n' in project
    assert 'fuseo1-verify = "fuseo1_kernels.verify:main"\n' in project


def test_as_a_module_without_torch(made: Family) -> None:
    """Checksums need no torch; only the reference backend does."""
    code = "import sys; sys.modules['torch'] = None\nfrom fuseo1_kernels.cli.verify import main\n"
    ran = spawn("-c", code + "sys.exit(main())", made.out)
    assert ran.code == 0, ran.err
    assert "all as written" in ran.out
