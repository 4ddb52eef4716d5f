"""Plans of embeddings of different sizes, and of names and numbers that no model has."""

from __future__ import annotations

import tracemalloc

import pytest

from fuseo1_kernels.plan.vocabularies import check_vocabularies
from support.headers import Models, layered, tensors


def test_embeddings_of_different_sizes(models: Models) -> None:
    models.add("base", tensors(layered(1, vocab=12)))
    models.add("left", tensors(layered(1, vocab=10)))
    models.add("right", tensors(layered(1, vocab=11)))
    plan = models.plan("base left right")
    embedding, head = plan.problems
    assert embedding.startswith("tensor model.embed_tokens.weight: vocabulary sizes differ")
    assert head.startswith("tensor lm_head.weight: vocabulary sizes differ")
    assert all("`tokenizer_source: base`" in each for each in (embedding, head))
    for problem in plan.problems:
        assert "base: [12, 4], left: [10, 4], right: [11, 4]" in problem
        assert "--crop-embeddings" in problem


@pytest.mark.parametrize(("base", "left", "vocab"), [(12, 10, 10), (10, 12, None)])
def test_cropped_embeddings(base: int, left: int, vocab: int | None, models: Models) -> None:
    models.add("base", tensors(layered(1, vocab=base)))
    models.add("left", tensors(layered(1, vocab=left)))
    plan = models.plan("base left", crop_embeddings=True)
    assert plan.problems == ()
    assert plan.vocab_size == vocab  # None: the base's own
    shapes = {job.name: job.shape for job in plan.jobs}
    assert shapes == layered(1, vocab=10)
    assert plan.jobs[0].input_bytes == 2 * 10 * 4 * 2


def test_only_rows_of_embeddings_are_cropped(models: Models) -> None:
    models.add("base", tensors({"embed.weight": (10, 4), "mlp.weight": (6, 4)}))
    models.add("left", tensors({"embed.weight": (10, 5), "mlp.weight": (5, 4)}))
    plan = models.plan("base left", crop_embeddings=True)
    assert [problem.split(" (")[0] for problem in plan.problems] == [
        "tensor embed.weight: shapes differ",
        "tensor mlp.weight: shapes differ",
    ]


def test_two_vocabularies_are_in_memory_at_a_time(models: Models) -> None:
    """However many models there are, and what they share besides."""
    names = ["base", *"abcde"]
    for name in names:
        models.add(name, tensors({"embed_tokens.weight": (20_000, 1)}))
        (models.home / name / "vocab.txt").write_text("".join(f"word{i}\n" for i in range(20_000)))

    def peak(count: int) -> int:
        jobs = models.plan(" ".join(names[:count])).jobs
        tracemalloc.start()
        found, notes = check_vocabularies(
            jobs,
            jobs[0].stored[0].source,
            copied=True,
            as_they_stand=False,
            max_memory=64 << 20,
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found and len(found.tokens) == 20_000 and notes == []
        return most

    assert peak(2) < 1.1 * peak(6) < 1.2 * peak(2)


# --- names and numbers that no model has -------------------------------------------------


@pytest.mark.parametrize("index", ["00", "٣", "9" * 400, "9" * 5000])
def test_a_number_that_is_no_layers(index: str, models: Models) -> None:
    """A second spelling of a layer, or one that Python cannot count to: a tensor beside the layers."""
    held = tensors({"layers.0.w": (4,), f"layers.{index}.w": (4,), "layers.1.w": (4,)})
    for name in ("base", "left"):
        models.add(name, held)
    sources = [{"model": name, "layer_range": [0, 2]} for name in ("base", "left")]
    for keys in ({}, {"slices": [{"sources": sources}]}):
        plan = models.plan("base left", **keys)
        assert plan.problems == ()
        assert {job.name for job in plan.jobs} == held.keys()


def test_names_that_cannot_be_printed_are_escaped(models: Models) -> None:
    models.add("base", tensors({"a\x1b[2J": (4,), "b\n": (4,), "c\n": (4,)}))
    models.add("left", {**tensors({"b\n": (5,), "d\n": (4,)}), **tensors({"c\n": (4,)}, "I64")})
    plan = models.plan("base left")
    assert len(plan.problems) == 3 and len(plan.notes) == 1
    assert all(text.isprintable() for text in (*plan.problems, *plan.notes))
