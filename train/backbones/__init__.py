"""The encoder families. A new family is one module in this folder with an Adapter, and one entry in ADAPTERS."""

from __future__ import annotations

from transformers import PreTrainedConfig

from berxit.runtime.errors import InputError
from berxit.train.backbones.adapter import Adapter
from berxit.train.backbones.albert import AlbertAdapter
from berxit.train.backbones.bert import BertAdapter, RobertaAdapter
from berxit.train.backbones.distilbert import DistilBertAdapter
from berxit.train.backbones.mpnet import MPNetAdapter
from berxit.train.backbones.weights import EmbeddingWeights, LayerWeights

__all__ = ["ADAPTERS", "Adapter", "EmbeddingWeights", "LayerWeights", "adapter_for"]

ADAPTERS: dict[str, type[Adapter]] = {
    "bert": BertAdapter,
    "roberta": RobertaAdapter,
    "albert": AlbertAdapter,
    "distilbert": DistilBertAdapter,
    "mpnet": MPNetAdapter,
}
"""transformers' model_type -> the family's adapter."""


def adapter_for(config: PreTrainedConfig) -> Adapter:
    """The adapter for a backbone's configuration. Raises InputError for a family that is not supported."""
    adapter = ADAPTERS.get(config.model_type)
    if adapter is None:
        raise InputError(f"model type '{config.model_type}' is not supported: choose one of {', '.join(ADAPTERS)}")
    return adapter(config)
