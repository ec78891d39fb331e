"""The encoder families. A new one is one module here with an Adapter, and one entry in ADAPTERS."""

from __future__ import annotations

from transformers import PreTrainedConfig

from runtime.errors import InputError
from train.backbones.adapter import Adapter
from train.backbones.albert import AlbertAdapter
from train.backbones.bert import BertAdapter, RobertaAdapter
from train.backbones.distilbert import DistilBertAdapter
from train.backbones.mpnet import MPNetAdapter
from train.backbones.weights import EmbeddingWeights, LayerWeights

__all__ = ["ADAPTERS", "Adapter", "EmbeddingWeights", "LayerWeights", "adapter_for"]

ADAPTERS: dict[str, type[Adapter]] = {
    "bert": BertAdapter,
    "roberta": RobertaAdapter,
    "albert": AlbertAdapter,
    "distilbert": DistilBertAdapter,
    "mpnet": MPNetAdapter,
}
"""transformers' model_type -> the adapter that knows the family."""


def adapter_for(config: PreTrainedConfig) -> Adapter:
    """The adapter of a backbone's configuration. Raises InputError for a family that is not supported."""
    adapter = ADAPTERS.get(config.model_type)
    if adapter is None:
        raise InputError(f"model type '{config.model_type}' is not supported: choose one of {', '.join(ADAPTERS)}")
    return adapter(config)
