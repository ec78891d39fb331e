"""Checks of a manifest that its types cannot express: roles, dtypes, shapes, names and sizes. The manifest is checked
for consistency and against the opened segment files.

A backend allocates memory and reads outputs according to the manifest. With a wrong manifest it would read
uninitialized memory, so every entry is checked before the first prediction.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from berxit.runtime.arguments import MOST_THREADS
from berxit.runtime.errors import BerxitError
from berxit.runtime.kinds import KINDS
from berxit.runtime.metrics import positive_class

if TYPE_CHECKING:
    from berxit.runtime.bundle import Manifest, ModelInfo, Segment, TensorInfo

TOKENS = ("input_ids", "token_type_ids", "attention_mask")
CARRIED = ("hidden", "attention_bias", "token_weights")
"""Roles that the embeddings segment writes and the layer segments read."""
FLOATS = ("float32", "float16")
STORED = (*FLOATS, "int8", "uint8", "int32", "int64")
"""Dtypes of raw tensor files."""
LARGEST_INT32 = 2**31 - 1

Shape = tuple[str | int, ...]


class Port(NamedTuple):
    """Input or output of an opened segment file, as reported by the backend."""

    name: str
    dtype: str | None
    """Dtype as numpy names it; None if the backend does not report it."""
    shape: Shape | None
    """Shape, with a string for each dynamic size; None if the backend does not report it."""


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raises BerxitError for the first entry of a manifest that is inconsistent or violates the format."""
    for problem in _problems(manifest):
        raise BerxitError(f"{where}: {problem}. Export the bundle again")


def check_kind(model: ModelInfo, where: str) -> None:
    """Raises BerxitError for a kind that this reader does not know, and for labels that do not fit the kind."""
    if model.kind not in KINDS:
        raise BerxitError(
            f"{where}: model.kind is '{model.kind}': it must be {' or '.join(KINDS)}. Export the bundle again, or"
            " upgrade berxit here"
        )
    for problem in model.task_kind.problems(model.labels, model.label_column):
        raise BerxitError(f"{where}: {problem}. Export the bundle again")


def check_ports(segment: Segment, inputs: Sequence[Port], outputs: Sequence[Port], where: str) -> None:
    """Compares the inputs and outputs of ``segment`` with those of its opened file, which may have further outputs.

    Raises BerxitError for the first difference in names, dtypes, ranks or sizes.
    """
    names = [tensor.name for tensor in segment.inputs]
    for port in inputs:
        if port.name not in names:
            raise BerxitError(
                f"{where}: the file needs an input '{port.name}', which the manifest does not list. Export again"
            )
    for kind, stated, found in (("input", segment.inputs, inputs), ("output", segment.outputs, outputs)):
        ports = {port.name: port for port in found}
        for tensor in stated:
            if tensor.name not in ports:
                raise BerxitError(f"{where}: the file has no {kind} '{tensor.name}'. Export again")
            port = ports[tensor.name]
            if port.dtype not in (None, tensor.dtype) or not _fits(port.shape, tensor.shape):
                raise BerxitError(
                    f"{where}: {kind} '{tensor.name}' is {port.dtype or 'a tensor'} {_text(port.shape)} in the file and"
                    f" {tensor.dtype} {_text(tensor.shape)} in the manifest. Export again"
                )


def _fits(found: Shape | None, stated: Shape) -> bool:
    """True if a shape of the file matches one of the manifest. A dynamic size of the file matches any size; a dynamic
    size of the manifest matches only dynamic sizes."""
    if found is None:
        return True
    pairs = zip(found, stated, strict=False)
    return len(found) == len(stated) and all(isinstance(size, str) or size == expected for size, expected in pairs)


def _text(shape: Shape | None) -> str:
    return "of unknown shape" if shape is None else f"({', '.join(map(str, shape))})"


def _problems(manifest: Manifest) -> Iterator[str]:
    yield from _model(manifest.model)
    yield from _layers(manifest)
    yield from _sizes(manifest)
    yield from _segments(manifest)


def _model(model: ModelInfo) -> Iterator[str]:
    least, most = model.task_kind.label_counts
    if not least <= len(model.labels) <= most:
        needed = "none" if not most else f"at least {least}" if most == math.inf else f"{least} to {most}"
        yield f"model.labels has {len(model.labels)} entries: a {model.kind} model must have {needed}"
    if twice := _repeated(model.labels):
        yield f"model.labels contains '{twice}' twice"
    if not 1 <= len(model.text_columns) <= 2:
        yield f"model.text_columns has {len(model.text_columns)} entries: a model reads 1 text or a pair of 2"
    if not model.metric:
        yield "model.metric is empty: it must be the name of a metric"
    if model.positive not in (None, positive_class(model.metric, model.labels)):
        yield f"model.positive is '{model.positive}': it must be the second of two labels, with metric f1"
    for name in ("layers", "hidden_size", "max_length"):
        if not 1 <= (value := getattr(model, name)) <= LARGEST_INT32:
            yield f"model.{name} is {value}: it must be at least 1 and at most {LARGEST_INT32}"
    if not 0 <= model.pad_token_id <= LARGEST_INT32:
        yield f"model.pad_token_id is {model.pad_token_id}: it must be at least 0 and at most {LARGEST_INT32}"


def _layers(manifest: Manifest) -> Iterator[str]:
    layers, n = [segment.layer for segment in manifest.segments], manifest.model.layers
    if layers != sorted({0, *layers, n}) or len(layers) < 2 or layers[-1] != n or manifest.policy.layers != n:
        yield (
            f"{len(layers)} segments {layers} and a policy for {manifest.policy.layers} layers do not match a model of"
            f" {n} layers"
        )
    for before, segment in zip([0, *layers], manifest.segments, strict=False):
        run = max(1, segment.layer - before)
        if segment.repeat < 1 or run % segment.repeat:
            yield (
                f"segment of layer {segment.layer}: repeat is {segment.repeat}: it must be at least 1 and divide the"
                f" {run} layers of the segment"
            )


def _sizes(manifest: Manifest) -> Iterator[str]:
    for name, most in (("threads", MOST_THREADS), ("max_batch", LARGEST_INT32)):
        value = getattr(manifest, name)
        if value is not None and not 1 <= value <= most:
            yield f"{name} is {value}: it must be at least 1 and at most {most}"
    if list(manifest.lengths) != sorted({*manifest.lengths}) or min(manifest.lengths, default=1) < 1:
        yield f"lengths is {list(manifest.lengths)}: it must be in ascending order, without duplicates, from at least 1"
    rows, pad = manifest.table_rows, manifest.model.pad_token_id
    if rows is not None and pad >= rows:
        yield f"model.pad_token_id is {pad}: the word embedding table has {rows} rows"
    exits, parity, scores = manifest.exits, manifest.parity, manifest.scores
    for name, numbers in {"parity.atol": (parity.atol,), "parity.max_diff": parity.max_diff}.items():
        if not all(0 <= number < math.inf for number in numbers):  # also rejects NaN
            yield f"{name} is {numbers if len(numbers) > 1 else numbers[0]}: it must be finite and at least 0"
    if not 0 < parity.scale < math.inf:
        yield f"parity.scale is {parity.scale}: it must be above 0, and finite"
    counted = {"parity.max_diff": parity.max_diff}
    if scores:
        counted |= {"scores.checkpoint": scores.checkpoint, "scores.bundle": scores.bundle}
    for name, entries in counted.items():
        if len(entries) != len(exits):
            yield f"{name} has {len(entries)} entries for {len(exits)} exits"


def _segments(manifest: Manifest) -> Iterator[str]:
    first, *layers = manifest.segments
    expected = _expected_shapes(manifest, first)
    exits = FLOATS if manifest.target == "coreml" else ("float32",)
    for segment in manifest.segments:
        yield from (f"segment of layer {segment.layer}: {problem}" for problem in _tensors(segment, expected, exits))
        yield from (f"segment of layer {segment.layer}: {problem}" for problem in _functions(segment, manifest))
    yield from (f"segment of layer 0: {problem}" for problem in _embeddings(first))
    carried = {tensor.role: tensor for tensor in first.outputs}
    for segment in layers:
        last = segment is layers[-1]
        problems = _layer(segment, carried, lte=manifest.model.lte, last=last)
        yield from (f"segment of layer {segment.layer}: {problem}" for problem in problems)
    yield from _shared_files(manifest)
    if manifest.full is not None:
        found = (
            *_tensors(manifest.full, expected, exits),
            *_functions(manifest.full, manifest),
            *_full(manifest.full, first, layers[-1]),
        )
        yield from (f"full: {problem}" for problem in found)


def _functions(segment: Segment, manifest: Manifest) -> Iterator[str]:
    """Problems of a segment's functions: all segments have one per length, or none has any. Only packages for CoreML
    contain functions and have a compiled form."""
    if manifest.target != "coreml" and (segment.functions or segment.compiled):
        yield "functions and compiled are allowed for target coreml only"
    expected = len(manifest.lengths) if manifest.segments[0].functions else 0
    if len(segment.functions) != expected:
        yield f"it has {len(segment.functions)} functions, expected {expected}, one per length or none"
    if segment.functions and segment.function is not None:
        yield "it has a function for all lengths and functions for each"


def _full(full: Segment, first: Segment, last: Segment) -> Iterator[str]:
    """Problems of full depth as one graph: it reads the inputs of the embeddings and writes the last exit's outputs."""
    if full.layer != last.layer:
        yield f"its layer is {full.layer}, expected {last.layer}"
    if {tensor.role for tensor in full.inputs} != {tensor.role for tensor in first.varying}:
        yield "it does not read what the embeddings segment reads"
    if {tensor.role for tensor in full.outputs} != {tensor.role for tensor in last.outputs} - {"hidden"}:
        yield f"it does not write what the segment of layer {last.layer} writes"


def _expected_shapes(manifest: Manifest, first: Segment) -> dict[str, tuple[Shape, ...]]:
    """Role -> allowed shapes. Dynamic sizes are called batch and length."""
    length: str | int = "length"
    if len(manifest.lengths) == 1:  # CoreML: the manifest may have a number for a single length
        stated = [tensor.shape for tensor in first.inputs if tensor.role == "input_ids"]
        length = manifest.lengths[0] if stated and manifest.lengths[0] in stated[0] else "length"
    batch: str | int = 1 if manifest.max_batch == 1 and manifest.target == "coreml" else "batch"
    size, outputs = manifest.model.hidden_size, manifest.model.outputs
    heads = {t.shape[1] for t in first.outputs if t.role == "attention_bias" and len(t.shape) == 4}
    return {
        **dict.fromkeys(TOKENS, ((batch, length),)),
        "hidden": ((batch, length, size), (batch, size, 1, length)),  # the second is CoreML's layout "ane"
        "attention_bias": ((batch, 1, 1, length), *((batch, h, length, length) for h in heads if isinstance(h, int))),
        "token_weights": ((batch, 1, length),),
        "logits": ((batch, length, outputs) if manifest.model.task_kind.words else (batch, outputs),),
        "lte": ((batch,),),
        **({"lte_logit": ((batch,),)} if manifest.target == "coreml" else {}),
    }


def _tensors(segment: Segment, expected: Mapping[str, Sequence[Shape]], exit_dtypes: Sequence[str]) -> Iterator[str]:
    """Problems of a segment's tensors: duplicate names or roles, unknown roles, and wrong dtypes or shapes.

    ``exit_dtypes``: allowed dtypes of logits and LTE.
    """
    for kind, tensors in (("input", segment.inputs), ("output", segment.outputs)):
        if twice := _repeated(tensor.name for tensor in tensors):
            yield f"{kind} '{twice}' is listed twice"
        if twice := _repeated(tensor.role for tensor in tensors if tensor.role != "constant"):
            yield f"role '{twice}' is listed twice among the {kind}s"
    yield from _constants(segment)
    for tensor in (*segment.varying, *segment.outputs):
        if tensor.role not in expected:
            yield f"'{tensor.name}' has the unknown role '{tensor.role}': roles are {', '.join(expected)}, constant"
        elif tensor.shape not in expected[tensor.role]:
            shapes = " or ".join(map(_text, expected[tensor.role]))
            yield f"'{tensor.name}' of role {tensor.role} has shape {_text(tensor.shape)}, expected {shapes}"
        dtypes = ("int32",) if tensor.role in TOKENS else FLOATS if tensor.role in CARRIED else exit_dtypes
        if tensor.dtype not in dtypes:
            yield f"'{tensor.name}' of role {tensor.role} has dtype '{tensor.dtype}', expected {' or '.join(dtypes)}"


def _constants(segment: Segment) -> Iterator[str]:
    """Problems of a segment's constant inputs: they must match ``constants`` in name, dtype and shape."""
    for name in segment.constants.keys() - {tensor.name for tensor in segment.inputs}:
        yield f"constants lists '{name}', which is not an input"
    for tensor in segment.inputs:
        constant = segment.constants.get(tensor.name)
        if (tensor.role == "constant") != (constant is not None):
            yield (
                f"input '{tensor.name}' has role '{tensor.role}': constants must list exactly the inputs of role"
                " constant"
            )
        if constant is None:
            continue
        if (constant.dtype, constant.shape) != (tensor.dtype, tensor.shape):
            yield (
                f"input '{tensor.name}' is {tensor.dtype} {_text(tensor.shape)}, but its constant is {constant.dtype}"
                f" {_text(constant.shape)}"
            )
        if tensor.dtype not in STORED:
            yield f"constant '{tensor.name}' has dtype '{tensor.dtype}', expected one of {', '.join(STORED)}"
        if not all(isinstance(size, int) and size >= 0 for size in tensor.shape):
            yield f"constant '{tensor.name}' has shape {_text(tensor.shape)}: its sizes must be non-negative integers"


def _embeddings(segment: Segment) -> Iterator[str]:
    yield from _roles("reads", segment.varying, needed={"input_ids", "attention_mask"}, known={*TOKENS})
    yield from _roles("writes", segment.outputs, needed={"hidden", "attention_bias"}, known={*CARRIED})


def _layer(segment: Segment, carried: Mapping[str, TensorInfo], *, lte: bool, last: bool) -> Iterator[str]:
    yield from _roles("reads", segment.varying, needed={"hidden"}, known={*carried})
    certainty = "lte_logit" if any(tensor.role == "lte_logit" for tensor in segment.outputs) else "lte"
    needed = {"logits"} | ({certainty} if lte else set()) | (set() if last else {"hidden"})
    yield from _roles("writes", segment.outputs, needed=needed, known=needed | {"hidden"})
    if segment.repeat > 1 and "hidden" not in {tensor.role for tensor in segment.outputs}:
        yield "repeat is above 1, but it writes no hidden"
    for tensor in (*segment.varying, *segment.outputs):
        made = carried.get(tensor.role)
        if made is not None and (made.dtype, made.shape) != (tensor.dtype, tensor.shape):
            yield (
                f"'{tensor.name}' is {tensor.dtype} {_text(tensor.shape)}, but the embeddings segment writes"
                f" {tensor.role} as {made.dtype} {_text(made.shape)}"
            )


def _roles(verb: str, tensors: Iterable[TensorInfo], *, needed: set[str], known: set[str]) -> Iterator[str]:
    found = {tensor.role for tensor in tensors}
    if missing := sorted(needed - found):
        yield f"it {verb} no {missing[0]}"
    if surplus := sorted(found - known):
        yield f"it {verb} {surplus[0]}, which is not allowed at its position"


def _shared_files(manifest: Manifest) -> Iterator[str]:
    """Problems of segments with the same file and function, which is opened once: their tensors must be equal."""
    stated: dict[tuple[str, str | None, str, str], tuple[int, TensorInfo]] = {}
    for segment in manifest.segments:
        for kind, tensors in (("input", segment.inputs), ("output", segment.outputs)):
            for tensor in tensors:
                before, other = stated.setdefault(
                    (segment.file, segment.function, kind, tensor.name), (segment.layer, tensor)
                )
                if other != tensor:
                    yield (
                        f"segment of layer {segment.layer}: {kind} '{tensor.name}' of {segment.file} differs from that"
                        f" of the segment of layer {before}"
                    )


def _repeated(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
