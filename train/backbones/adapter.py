"""What the project needs to know of an encoder family, and all it knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from optimum.utils import NormalizedConfigManager
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from berxit.train.backbones.weights import ACTIVATIONS, EmbeddingWeights, LayerWeights


class Adapter(ABC):
    """One family's names for the same mathematics."""

    has_token_types = False
    """Whether the encoder takes token_type_ids."""

    layer_list: str | None = "encoder.layer."
    """Prefix of the numbered layers in the encoder's parameter names; None where all layers are needed (ALBERT)."""

    task_heads: tuple[str, ...] = ("classifier.", "qa_outputs.")
    """Prefixes of the task heads that transformers stores beside the encoder. Training does not need them."""

    implemented: Mapping[str, tuple[Any, ...]] = {
        "hidden_act": ACTIVATIONS,
        "is_decoder": (False, None),
        "is_encoder_decoder": (False, None),
        "add_cross_attention": (False, None),
        "position_embedding_type": ("absolute", None),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
    }
    """config.json option -> the values that the canonical layer implements. An option that is absent is accepted."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config
        sizes = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
        self.hidden_size: int = sizes.hidden_size
        self.layers: int = sizes.num_layers

    def keep_layers(self, layers: int) -> None:
        """Reduces the configuration to the first ``layers`` layers."""
        self.config.num_hidden_layers = self.layers = layers

    @property
    def max_length(self) -> int:
        """The longest input, in tokens."""
        return int(self.config.max_position_embeddings)

    @property
    def padding_id(self) -> int | None:
        """The token id from which the family counts positions; None where positions do not depend on padding."""
        return None

    @property
    def dropout(self) -> float:
        """The probability with which a classifier on top drops its input, as the family's own classifier does."""
        own = getattr(self.config, "classifier_dropout", None)
        return float(self.config.hidden_dropout_prob if own is None else own)

    def pooler(self, backbone: PreTrainedModel) -> nn.Linear | None:
        """The dense layer of the pre-trained pooler, if the backbone has one."""
        return None

    def remove_pooler(self, backbone: PreTrainedModel) -> None:  # noqa: B027 - most families have none
        """Takes the backbone's own pooler away: every exit has its own head."""

    @abstractmethod
    def embeddings(self, backbone: PreTrainedModel) -> EmbeddingWeights: ...

    @abstractmethod
    def encoder_layers(self, backbone: PreTrainedModel) -> list[LayerWeights]:
        """The n layers in order; shared ones as the same object."""
