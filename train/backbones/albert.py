"""ALBERT: BERT's layer under other names, one body for all layers of a group, and smaller embeddings projected up."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from berxit.runtime.errors import InputError
from berxit.train.backbones.adapter import Adapter
from berxit.train.backbones.weights import EmbeddingWeights, LayerWeights, Linear, Norm, array


class AlbertAdapter(Adapter):
    has_token_types = True

    @property
    def dropout(self) -> float:
        return float(self.config.classifier_dropout_prob)

    def pooler(self, backbone: PreTrainedModel) -> nn.Linear | None:
        return backbone.pooler

    def remove_pooler(self, backbone: PreTrainedModel) -> None:
        backbone.pooler = None
        backbone.pooler_activation = None

    def embeddings(self, backbone: PreTrainedModel) -> EmbeddingWeights:
        module = backbone.embeddings
        return EmbeddingWeights(
            words=array(module.word_embeddings.weight),
            positions=array(module.position_embeddings.weight),
            types=array(module.token_type_embeddings.weight),
            norm=Norm.of(module.LayerNorm),
            projection=Linear.of(backbone.encoder.embedding_hidden_mapping_in),
        )

    def encoder_layers(self, backbone: PreTrainedModel) -> list[LayerWeights]:
        if self.config.inner_group_num != 1:
            raise InputError(f"ALBERT with inner_group_num {self.config.inner_group_num} is not supported: only 1 is")
        bodies = [self._layer(group.albert_layers[0]) for group in backbone.encoder.albert_layer_groups]
        return [bodies[i * len(bodies) // self.layers] for i in range(self.layers)]

    def _layer(self, layer: nn.Module) -> LayerWeights:
        attention = layer.attention
        return LayerWeights(
            qkv=Linear.of(attention.query, attention.key, attention.value),
            output=Linear.of(attention.dense),
            attention_norm=Norm.of(attention.LayerNorm),
            up=Linear.of(layer.ffn),
            down=Linear.of(layer.ffn_output),
            output_norm=Norm.of(layer.full_layer_layer_norm),
            heads=self.config.num_attention_heads,
            activation=self.config.hidden_act,
        )
