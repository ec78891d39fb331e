"""The encoder families. A new family is one module in this folder with an Adapter, and one entry in ADAPTERS."""

from __future__ import annotations

from transformers import PreTrainedConfig

from berxit.runtime.errors import InputError
from berxit.train.backbones.adapter import Adapter
from berxit.train.backbones.albert import AlbertAdapter
from berxit.train.backbones.bert import BertAdapter, RobertaAdapter
from berxit.train.backbones.deberta import DebertaV2Adapter
from berxit.train.backbones.distilbert import DistilBertAdapter
from berxit.train.backbones.electra import ElectraAdapter
from berxit.train.backbones.modernbert import ModernBertAdapter
from berxit.train.backbones.mpnet import MPNetAdapter
from berxit.train.backbones.weights import EmbeddingWeights, LayerWeights

__all__ = ["ADAPTERS", "Adapter", "EmbeddingWeights", "LayerWeights", "adapter_for"]

ADAPTERS: dict[str, type[Adapter]] = {
    "bert": BertAdapter,
    "roberta": RobertaAdapter,
    "xlm-roberta": RobertaAdapter,
    "camembert": RobertaAdapter,
    "albert": AlbertAdapter,
    "distilbert": DistilBertAdapter,
    "mpnet": MPNetAdapter,
    "electra": ElectraAdapter,
    "modernbert": ModernBertAdapter,
    "deberta-v2": DebertaV2Adapter,
}
"""transformers' model_type -> the family's adapter."""


def adapter_for(config: PreTrainedConfig) -> Adapter:
    """The adapter for a backbone's configuration. Raises InputError for a family that is not supported."""
    adapter = ADAPTERS.get(config.model_type)
    if adapter is None:
        raise unsupported(config.model_type, _reason(config))
    return adapter(config)


def unsupported(model_type: str, reason: str) -> InputError:
    """The error for a family that is not supported."""
    return InputError(
        f"model type '{model_type}' is not supported, because {reason}: choose one of {', '.join(ADAPTERS)}"
    )


def _reason(config: PreTrainedConfig) -> str:
    """The reason why a family is not supported."""
    if config.is_encoder_decoder:
        return "it has a decoder, and a segment is an encoder layer"
    if any(name.endswith(("CausalLM", "LMHeadModel")) for name in config.architectures or ()):
        return "its tokens do not attend to later tokens, and a segment is an encoder layer"
    return "no adapter converts its parameters to the canonical encoder layer"
