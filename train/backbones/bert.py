"""BERT and RoBERTa (XLM-R, CamemBERT), which have the same parameter names and different position ids."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from berxit.train.backbones.adapter import Adapter
from berxit.train.backbones.weights import EmbeddingWeights, LayerWeights, Linear, Norm, array


class BertAdapter(Adapter):
    has_token_types = True
    task_heads = (*Adapter.task_heads, "cls.predictions.", "cls.seq_relationship.")

    def pooler(self, backbone: PreTrainedModel) -> nn.Linear | None:
        return backbone.pooler.dense if backbone.pooler is not None else None

    def remove_pooler(self, backbone: PreTrainedModel) -> None:
        backbone.pooler = None

    def embeddings(self, backbone: PreTrainedModel) -> EmbeddingWeights:
        module = backbone.embeddings
        return EmbeddingWeights(
            word_embeddings=array(module.word_embeddings.weight),
            positions=array(module.position_embeddings.weight),
            types=array(module.token_type_embeddings.weight),
            norm=Norm.of(module.LayerNorm),
        )

    def encoder_layers(self, backbone: PreTrainedModel) -> list[LayerWeights]:
        return [
            LayerWeights(
                qkv=Linear.of(layer.attention.self.query, layer.attention.self.key, layer.attention.self.value),
                output=Linear.of(layer.attention.output.dense),
                attention_norm=Norm.of(layer.attention.output.LayerNorm),
                up=Linear.of(layer.intermediate.dense),
                down=Linear.of(layer.output.dense),
                output_norm=Norm.of(layer.output.LayerNorm),
                heads=self.config.num_attention_heads,
                activation=self.config.hidden_act,
            )
            for layer in backbone.encoder.layer
        ]


class RobertaAdapter(BertAdapter):
    """RoBERTa counts positions from padding id + 1. Its single token type is added to the position embeddings."""

    has_token_types = False
    task_heads = (*Adapter.task_heads, "lm_head.")

    @property
    def padding_id(self) -> int | None:
        return -1 if self.config.pad_token_id is None else self.config.pad_token_id  # The checks reject -1.

    @property
    def max_length(self) -> int:
        return int(self.config.max_position_embeddings) - self.config.pad_token_id - 1

    def embeddings(self, backbone: PreTrainedModel) -> EmbeddingWeights:
        weights = super().embeddings(backbone)
        assert weights.types is not None
        assert weights.positions is not None
        positions = weights.positions[self.config.pad_token_id + 1 :] + weights.types[0]
        return replace(weights, positions=positions, types=None)
