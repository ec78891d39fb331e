"""MPNet: BERT's layer, RoBERTa's position ids, and a relative position bias that all layers share."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from berxit.train.backbones.adapter import Adapter
from berxit.train.backbones.weights import Array, EmbeddingWeights, LayerWeights, Linear, Norm, array

PADDING = 1
"""Padding id from which transformers' MPNet counts positions. It ignores pad_token_id of the configuration."""


class MPNetAdapter(Adapter):
    task_heads = (*Adapter.task_heads, "lm_head.")
    implemented = {  # noqa: RUF012 - as the base class has it
        **Adapter.implemented,
        "relative_attention_num_buckets": (32,),  # transformers always computes 32 buckets.
    }

    @property
    def padding_id(self) -> int | None:
        return PADDING

    @property
    def max_length(self) -> int:
        return int(self.config.max_position_embeddings) - PADDING - 1

    def pooler(self, backbone: PreTrainedModel) -> nn.Linear | None:
        return backbone.pooler.dense if backbone.pooler is not None else None

    def remove_pooler(self, backbone: PreTrainedModel) -> None:
        backbone.pooler = None

    def embeddings(self, backbone: PreTrainedModel) -> EmbeddingWeights:
        module = backbone.embeddings
        return EmbeddingWeights(
            word_embeddings=array(module.word_embeddings.weight),
            positions=array(module.position_embeddings.weight)[PADDING + 1 :],
            types=None,
            norm=Norm.of(module.LayerNorm),
            relative_bias=self._relative_bias(backbone.encoder),
        )

    def encoder_layers(self, backbone: PreTrainedModel) -> list[LayerWeights]:
        return [
            LayerWeights(
                qkv=Linear.of(layer.attention.attn.q, layer.attention.attn.k, layer.attention.attn.v),
                output=Linear.of(layer.attention.attn.o),
                attention_norm=Norm.of(layer.attention.LayerNorm),
                up=Linear.of(layer.intermediate.dense),
                down=Linear.of(layer.output.dense),
                output_norm=Norm.of(layer.output.LayerNorm),
                heads=self.config.num_attention_heads,
                activation=self.config.hidden_act,
            )
            for layer in backbone.encoder.layer
        ]

    def _relative_bias(self, encoder: nn.Module) -> Array:
        """The bias for every distance between two tokens of the longest input, from the encoder's buckets."""
        distances = torch.arange(1 - self.max_length, self.max_length)
        buckets = encoder.relative_position_bucket(distances)
        return array(encoder.relative_attention_bias.weight[buckets].T.contiguous())
