"""The graphs, compared layer by layer with PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ENCODERS, shared

from berxit.exporters.onnx.graph import OPSET, OnnxSegment, embeddings_graph, layer_graph
from berxit.exporters.segments import split_segments
from berxit.runtime.errors import InputError
from berxit.train.modeling import MultiExitModel, MultiExitOutput

BATCHES = ((5,), (1,), (9, 4, 1), (2, 2), (17, 39, 3, 8))
"""Lengths of the rows of each batch, in tokens."""

Arrays = dict[str, np.ndarray]


def batch_of(lengths: tuple[int, ...], vocabulary: int = 27) -> Arrays:
    rng = np.random.default_rng(sum(lengths))
    mask = (np.arange(max(lengths))[None] < np.array(lengths)[:, None]).astype(np.int32)
    ids = rng.integers(5, vocabulary, mask.shape).astype(np.int32) * mask
    types = (np.arange(max(lengths))[None] >= np.array(lengths)[:, None] // 2).astype(np.int32) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def expected_of(model: MultiExitModel, batch: Arrays) -> MultiExitOutput:
    with torch.no_grad():
        return model(**{k: torch.from_numpy(v).long() for k, v in batch.items()}, output_hidden_states=True)


class Runner:
    """All segments of a model in ONNX Runtime; each reads the tensors of earlier ones by role."""

    def __init__(self, model: MultiExitModel) -> None:
        segments = split_segments(model)
        self.graphs = [embeddings_graph(segments), *(layer_graph(segments, layer) for layer in segments.layers)]
        self.sessions = [session_of(graph) for graph in self.graphs]

    def __call__(self, batch: Arrays) -> list[Arrays]:
        """Role -> array of every segment, the embeddings first."""
        tensors, found = dict(batch), []
        for graph, session in zip(self.graphs, self.sessions, strict=True):
            feeds = {i.name: tensors[i.role] for i in graph.inputs if i.role != "constant"}
            names = [output.name for output in graph.outputs]
            values = session.run(names, {**feeds, **graph.constants})
            outputs = {o.role: value for o, value in zip(graph.outputs, values, strict=True)}
            tensors.update(outputs)
            found.append(outputs)
        return found


def session_of(graph: OnnxSegment) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def check(model: MultiExitModel, runner: Runner, batch: Arrays, tolerance: float) -> None:
    expected, found = expected_of(model, batch), runner(batch)
    kept = batch["attention_mask"].astype(bool)
    assert len(found) == model.layers + 1
    for layer, outputs in enumerate(found):
        gap = np.abs(outputs["hidden"] - expected.hidden_states[layer].numpy())[kept].max()
        assert gap <= tolerance, f"hidden state {layer}"
        if layer:
            assert outputs["logits"].shape == expected.exit_logits[:, layer - 1].shape
            assert np.abs(outputs["logits"] - expected.exit_logits[:, layer - 1].numpy()).max() <= tolerance
            assert np.abs(outputs["lte"] - expected.certainties[:, layer - 1].numpy()).max() <= tolerance


@pytest.mark.parametrize("exit_head", ["linear", "pooler"])
@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("family", ENCODERS)
def test_every_segment_equals_pytorch(family: str, pooling: str, exit_head: str, backbone_folders: dict) -> None:
    torch.manual_seed(0)
    model = MultiExitModel.from_backbone(
        backbone_folders[family], num_labels=3, lte=True, pooling=pooling, exit_head=exit_head
    ).eval()
    with torch.no_grad():
        for parameter in [*model.heads.parameters(), *model.lte.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    runner = Runner(model)
    for lengths in BATCHES:
        if max(lengths) <= model.adapter.max_length:
            check(model, runner, batch_of(lengths), 1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_short_end_has_same_outputs_without_hidden_states(family: str, backbone_folders: dict) -> None:
    options = {"lte": True, "exit_head": "pooler", "pooling": "first"}
    segments = split_segments(MultiExitModel.from_backbone(backbone_folders[family], **options))
    last = segments.layers[-1]
    long, short = (
        layer_graph(segments, last),
        layer_graph(segments, last, short_end=True, masked_keys=family != "albert"),
    )
    if family == "albert":  # its last layer is the same file as the others
        assert short.model == long.model
        return
    assert [output.role for output in short.outputs] == ["logits", "lte"]
    first, *_ = layer_graph(segments, segments.layers[0], short_end=True).outputs
    assert first.role == "hidden"
    check_same_outputs(long, short, ["logits", "lte"])


@pytest.mark.parametrize("family", ENCODERS)
def test_masked_keys_change_no_output(family: str, backbone_folders: dict) -> None:
    segments = split_segments(MultiExitModel.from_backbone(backbone_folders[family], lte=True, pooling="first"))
    added, masked = (layer_graph(segments, segments.layers[0], masked_keys=each) for each in (False, True))
    used = "Expand" in {node.op_type for node in masked.model.graph.node}
    assert used == (family not in ("mpnet", "modernbert", "deberta-v2"))
    check_same_outputs(added, masked, [output.name for output in added.outputs])


def check_same_outputs(one: OnnxSegment, other: OnnxSegment, names: list[str]) -> None:
    """Random hidden states and attention biases give equal outputs."""
    heads = next((i.shape[1] for i in one.inputs if i.role == "attention_bias"), 1)
    rng = np.random.default_rng(0)
    sessions = session_of(one), session_of(other)
    for lengths in BATCHES:
        rows, length = len(lengths), max(lengths)
        bias = np.zeros((rows, int(heads), length if heads != 1 else 1, length), np.float32)
        bias[:, :, :, 1:] = rng.normal(size=bias[:, :, :, 1:].shape)
        feeds = {"hidden_in": rng.normal(size=(rows, length, 32)).astype(np.float32), "attention_bias": bias}
        found = (
            session.run(names, {**feeds, **graph.constants})
            for session, graph in zip(sessions, (one, other), strict=True)
        )
        for first, second in zip(*found, strict=True):
            assert np.abs(first - second).max() <= 1e-5


def test_mean_pooling_has_no_short_end(backbone_folders: dict) -> None:
    segments = split_segments(MultiExitModel.from_backbone(backbone_folders["bert"], pooling="mean"))
    last = segments.layers[-1]
    assert layer_graph(segments, last, short_end=True).model == layer_graph(segments, last).model


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_pytorch_tanh"])
def test_other_activations_equal_pytorch(activation: str, backbone_folders: dict) -> None:
    model = MultiExitModel.from_backbone(backbone_folders["bert"], lte=True)
    model.config.backbone.hidden_act = activation
    changed = MultiExitModel(model.config).eval()
    changed.load_state_dict(model.state_dict())
    check(changed, Runner(changed), batch_of((9, 4)), 1e-5)


def test_export_rejects_unsupported_activation_by_name(backbone_folders: dict) -> None:
    segments = split_segments(MultiExitModel.from_backbone(backbone_folders["bert"]))
    first = segments.layers[0]
    strange = replace(first, encoder=replace(first.encoder, activation="swish"))
    with pytest.raises(InputError, match="activation 'swish' is not supported: the backbone must use gelu"):
        layer_graph(replace(segments, layers=(strange, *segments.layers[1:])), strange)


def test_layers_that_share_weights_are_one_graph(backbone_folders: dict) -> None:
    model = MultiExitModel.from_backbone(backbone_folders["albert"], lte=True, exit_head="pooler")
    segments = split_segments(model)
    graphs = [layer_graph(segments, segment) for segment in segments.layers]
    assert len({graph.model.SerializeToString() for graph in graphs}) == 1
    names = {"pooler.weight", "pooler.bias", "classifier.weight", "classifier.bias"}
    assert all(set(graph.constants) == names for graph in graphs)
    assert not np.array_equal(graphs[0].constants["classifier.weight"], graphs[1].constants["classifier.weight"])


def test_layers_with_their_own_weights_have_no_constant_inputs(backbone_folders: dict) -> None:
    segments = split_segments(MultiExitModel.from_backbone(backbone_folders["bert"]))
    assert all(layer_graph(segments, segment).constants == {} for segment in segments.layers)


def test_inputs_and_outputs_of_a_graph_equal_its_description(backbone_folders: dict) -> None:
    model = MultiExitModel.from_backbone(backbone_folders["bert"], num_labels=3, lte=True, pooling="mean")
    for graph in Runner(model).graphs:
        for declared, values in ((graph.inputs, graph.model.graph.input), (graph.outputs, graph.model.graph.output)):
            shapes = [tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in values]
            assert [value.name for value in values] == [info.name for info in declared]
            assert shapes == [info.shape for info in declared]
        assert graph.model.opset_import[0].version == OPSET
        assert {node.domain for node in graph.model.graph.node} == {""}
        onnx.checker.check_model(graph.model, full_check=True)


@pytest.mark.parametrize(("name", "vocabulary"), [("bge-small-en", 30522), ("rxnmapper-albert", 591)])
def test_real_weights_run_as_in_pytorch(name: str, vocabulary: int) -> None:
    folder: Path = shared("models", name)
    torch.manual_seed(0)
    model = MultiExitModel.from_backbone(folder, lte=True).eval()
    check(model, Runner(model), batch_of((40, 12, 3), vocabulary), 1e-4)
