"""Interface of an encoder family. All family-specific code is in the adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from optimum.utils import NormalizedConfigManager
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from berxit.train.backbones.weights import ACTIVATIONS, EmbeddingWeights, LayerWeights


class Adapter(ABC):
    """Converts one family's configuration and parameters to the canonical encoder."""

    has_token_types = False
    """True if the encoder has token_type_ids as an input."""

    layer_list: str | None = "encoder.layer."
    """Prefix of the numbered layers in the encoder's parameter names; None if all layers are needed (ALBERT)."""

    ignored: tuple[str, ...] = ()
    """Prefixes of encoder weights that some files contain and the model does not use."""

    task_heads: tuple[str, ...] = ("classifier.", "qa_outputs.")
    """Prefixes of task heads in transformers' weight files. Training ignores them."""

    implemented: Mapping[str, tuple[Any, ...]] = {
        "hidden_act": ACTIVATIONS,
        "is_decoder": (False, None),
        "is_encoder_decoder": (False, None),
        "add_cross_attention": (False, None),
        "position_embedding_type": ("absolute", None),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
    }
    """Option of config.json -> the values that the canonical layer implements. A missing option is accepted."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config
        sizes = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
        self.hidden_size: int = sizes.hidden_size
        self.layers: int = sizes.num_layers

    def unsupported(self) -> str | None:
        """The part of config.json that the canonical layer does not implement, beyond ``implemented``; None: none."""
        return None

    def keep_layers(self, layers: int) -> None:
        """Reduces the configuration to the first ``layers`` layers."""
        self.config.num_hidden_layers = self.layers = layers

    @property
    def max_length(self) -> int:
        """Maximum input length in tokens."""
        return int(self.config.max_position_embeddings)

    @property
    def padding_id(self) -> int | None:
        """The padding id from which the family counts positions; None if positions do not depend on padding."""
        return None

    @property
    def dropout(self) -> float:
        """Dropout probability of the exit heads, which is that of the family's own classifier."""
        own = getattr(self.config, "classifier_dropout", None)
        return float(self.config.hidden_dropout_prob if own is None else own)

    def pooler(self, backbone: PreTrainedModel) -> nn.Linear | None:
        """The dense layer of the pre-trained pooler; None if the family has no pooler."""
        return None

    def final_norm(self, backbone: PreTrainedModel) -> nn.Module | None:
        """The norm after the last layer of a pre-norm encoder; None if the layers normalize their own outputs.

        Every exit then has a norm of its own, with these weights at the start.
        """
        return None

    def remove_pooler(self, backbone: PreTrainedModel) -> None:  # noqa: B027 - most families have none
        """Removes the backbone's pooler and final norm, because every exit has its own."""

    @abstractmethod
    def embeddings(self, backbone: PreTrainedModel) -> EmbeddingWeights: ...

    @abstractmethod
    def encoder_layers(self, backbone: PreTrainedModel) -> list[LayerWeights]:
        """The n layers in order. Layers with shared weights are one object."""
