"""Finds, for each tensor of an adapter, the tensor of a model that it changes, as PEFT's merge_and_unload does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

from ..checkpoint.adapter import Adapted, Adapter
from ..checkpoint.folds import Fold, Folds
from ..checkpoint.header import MERGEABLE, TensorInfo
from ..checkpoint.source import Source
from ..errors import CheckpointError, first_names, printable
from .config_differences import ties_embeddings
from .token_tensors import is_embedding

#: The modules of transformers that are Conv1D, whose weights are stored transposed: by type of model and by name.
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_CONV1D = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})
_MERGE = "merge it into its model with PEFT and give that"


def add_adapter(model: Source, name: str, adapter: Adapter) -> Source:
    """Return `model` with `adapter`, under `name`: with the tensors that the adapter saves, and folds of the others.

    Raises CheckpointError for a tensor of the adapter that fits none of the model's.
    """
    return _Fitting(model, name, adapter).result()


class _Fitting:
    def __init__(self, model: Source, name: str, adapter: Adapter) -> None:
        self._model, self._name, self._adapter = model, name, adapter
        self._tensors = dict(model.tensors)
        self._folds: dict[str, Fold] = {}
        self._dtypes: dict[str, str] = {}
        tied = ties_embeddings(model.config)
        embeddings = [t for t in model.tensors.values() if is_embedding(t.name, t.shape)]
        same_shape = len({t.shape for t in embeddings}) == 1
        #: All embeddings, if they are one tensor.
        self._tied = [t.name for t in embeddings] if tied and same_shape else []

    def result(self) -> Source:
        unfit: list[str] = []
        for tensor, info in self._adapter.saved.items():
            unfit += self._save(tensor, info)
        for module, adapted in self._adapter.modules.items():
            unfit += self._adapt(module, adapted)
        if unfit:
            raise self._refused(
                f"its tensors for {first_names(unfit)} fit no tensor of the model {self._model.name};"
                " is it an adapter of another model, or of another class of this one?"
            )
        return Source(
            self._name,
            self._model.path,
            self._tensors,
            self._model.config,
            {**self._model.files, **self._adapter.files},
            Folds(self._adapter.path, self._folds, self._dtypes),
        )

    def _refused(self, problem: str) -> CheckpointError:
        return CheckpointError(f"adapter {self._adapter.name}: {problem}")

    def _named(self, tensor: str) -> list[str]:
        """Return the model's tensors that `tensor` means: all tied ones for one of them."""
        tied = self._tied and (
            tensor in self._tied or (tensor not in self._tensors and is_embedding(tensor, (0, 0)))
        )
        return self._tied if tied else [tensor] if tensor in self._model.tensors else []

    def _save(self, tensor: str, info: TensorInfo) -> Iterator[str]:
        """Put a tensor that the adapter holds in the place of the model's. Yields it if there is none."""
        names = self._named(tensor)
        if not names:
            yield tensor
            return
        if names is self._tied and tensor not in self._adapter.in_place:
            raise self._refused(
                f"modules_to_save has {tensor}, which is tied to another tensor in the model {self._model.name}, and"
                f" would no longer be; {_MERGE}"
            )
        for name in names:
            shape = self._model.tensors[name].shape
            if info.shape != shape:
                raise self._refused(
                    f"has {name} whole with the shape {list(info.shape)}, the model {self._model.name}"
                    f" {list(shape)}: give the model with embeddings of that size (PEFT loads it into no other)"
                    if is_embedding(name, (0, 0))
                    else f"has {name} with the shape {list(info.shape)}, the model {self._model.name} {list(shape)}"
                )
            if name != tensor and name in self._adapter.saved:
                continue
            self._tensors[name] = replace(info, name=name)
            self._dtypes[name] = self._model.tensors[name].dtype

    def _adapt(self, module: str, adapted: Adapted) -> Iterator[str]:
        """Fold the matrices of a module. Yields its tensors that are not there."""
        names = self._named(f"{module}.weight")
        if not names:
            yield f"{module}.weight"
        for name in names:
            if name in self._folds:
                raise self._refused(
                    f"adapts {name} twice, because embeddings are tied in the model {self._model.name}; {_MERGE}"
                )
            self._folds[name] = self._fold(module, self._tensors[name], adapted)
        if adapted.bias is None:
            return
        bias = self._tensors.get(f"{module}.bias")
        if bias is None:
            yield f"{module}.bias"
            return
        self._check(adapted.bias, adapted.bias.shape == bias.shape, bias)
        self._folds[bias.name] = Fold(None, adapted.bias, 1, adapted.scale)

    def _fold(self, module: str, weight: TensorInfo, adapted: Adapted) -> Fold:
        a, b, rank = adapted.a, adapted.b, adapted.rank
        self._check(a, len(weight.shape) >= 2, weight)
        rows, columns = weight.shape[0], prod(weight.shape[1:])
        outputs, inputs = b.shape[0], prod(a.shape[1:])
        straight = (
            (outputs, inputs) == (rows, columns)
            and prod(b.shape[2:]) == 1
            and (len(a.shape) == 2 or a.shape[1:] == weight.shape[1:])
        )
        flat = len(weight.shape) == len(a.shape) == len(b.shape) == 2
        transposed = flat and (inputs, outputs) == (rows, columns)
        self._check(a, straight or transposed, weight, b)
        if straight and transposed:
            transposed = adapted.embedding or self._is_conv1d(module)
        elif adapted.embedding and not transposed:
            self._check(a, False, weight, b)
        magnitude = adapted.magnitude
        if magnitude is not None:
            factors = columns if transposed else rows
            self._check(magnitude, magnitude.numel == factors, weight)
        left, right = (a, b) if transposed else (b, a)
        return Fold(left, right, rank, adapted.scale, transposed, magnitude)

    def _is_conv1d(self, module: str) -> bool:
        """Whether a module with a square weight stores it transposed. PEFT goes by the module's class, too."""
        if self._model.config.get("model_type") in _CONV1D_MODELS:
            return module.rpartition(".")[2] in _CONV1D
        if self._adapter.fan_in_fan_out and "auto_map" in self._model.config:
            raise self._refused(
                f"fan_in_fan_out: whether {module} of the model {self._model.name}, which has code of its own, stores"
                f" its square weight transposed is not known; {_MERGE}"
            )
        return False

    def _check(
        self, info: TensorInfo, fits: bool, weight: TensorInfo, other: TensorInfo | None = None
    ) -> None:
        """Raise CheckpointError unless `fits`: `info`, with `other`, has a shape for `weight`, of a dtype to merge."""
        if not fits:
            shapes = " and ".join(str(list(x.shape)) for x in (info, other) if x is not None)
            raise self._refused(
                f"tensor {printable(info.name)}: {shapes} fit not {printable(weight.name)} of the model"
                f" {self._model.name}, {list(weight.shape)}"
            )
        if weight.dtype not in MERGEABLE:
            raise self._refused(
                f"adapts {printable(weight.name)}, which is {weight.dtype} in the model {self._model.name}; supported:"
                f" {', '.join(sorted(MERGEABLE))}"
            )
