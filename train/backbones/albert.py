"""ALBERT: BERT's layer under other parameter names, weights shared by the layers of a group, factorized embeddings."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from berxit.runtime.errors import InputError
from berxit.train.backbones.adapter import Adapter
from berxit.train.backbones.weights import EmbeddingWeights, LayerWeights, Linear, Norm, array


class AlbertAdapter(Adapter):
    has_token_types = True
    layer_list = None
    task_heads = (*Adapter.task_heads, "predictions.", "sop_classifier.")
    implemented = {  # noqa: RUF012 - as the base class has it
        **Adapter.implemented,
        "inner_group_num": (1,),
        "gap_size": (0, None),
        "net_structure_type": (0, None),
        "down_scale_factor": (1, None),
        "num_memory_blocks": (0, None),
    }

    def keep_layers(self, layers: int) -> None:
        if self.config.num_hidden_groups > 1 and layers < self.layers:
            raise InputError(
                f"--layers {layers} is not possible with {self.config.num_hidden_groups} layer groups, because it"
                " would change which layers share weights: omit --layers"
            )
        super().keep_layers(layers)

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
            word_embeddings=array(module.word_embeddings.weight),
            positions=array(module.position_embeddings.weight),
            types=array(module.token_type_embeddings.weight),
            norm=Norm.of(module.LayerNorm),
            projection=Linear.of(backbone.encoder.embedding_hidden_mapping_in),
        )

    def encoder_layers(self, backbone: PreTrainedModel) -> list[LayerWeights]:
        bodies = [self._layer(group.albert_layers[0]) for group in backbone.encoder.albert_layer_groups]
        return [bodies[int(i / (self.layers / len(bodies)))] for i in range(self.layers)]  # Rounding of transformers.

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
