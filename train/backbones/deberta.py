"""DeBERTa-v2 and DeBERTa-v3: BERT's layer with relative positions in the attention scores (disentangled attention)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from berxit.train.backbones.adapter import Adapter
from berxit.train.backbones.weights import Array, EmbeddingWeights, LayerWeights, Linear, Norm, RelativeTerms, array


class DebertaV2Adapter(Adapter):
    task_heads = (*Adapter.task_heads, "pooler.", "cls.predictions.", "lm_predictions.", "mask_predictions.")

    @property
    def implemented(self) -> Mapping[str, tuple[Any, ...]]:  # type: ignore[override]
        return {
            **Adapter.implemented,
            "relative_attention": (True,),
            "pos_att_type": (["p2c", "c2p"], ["c2p", "p2c"]),
            "conv_kernel_size": (0, None),  # a convolution beside the first layer, in DeBERTa-v2 xlarge and xxlarge
            "norm_rel_ebd": ("none", "layer_norm", None),
            "embedding_size": (self.config.hidden_size, None),
            "attention_head_size": (self.config.hidden_size // self.config.num_attention_heads, None),
        }

    @property
    def has_token_types(self) -> bool:  # type: ignore[override]
        return bool(self.config.type_vocab_size)

    @property
    def ignored(self) -> tuple[str, ...]:  # type: ignore[override]
        """Some files contain absolute positions that config.json switches off."""
        return () if self.config.position_biased_input else ("embeddings.position_embeddings.",)

    @property
    def dropout(self) -> float:
        own = getattr(self.config, "cls_dropout", None)
        return float(self.config.hidden_dropout_prob if own is None else own)

    def embeddings(self, backbone: PreTrainedModel) -> EmbeddingWeights:
        module = backbone.embeddings
        positions, types = module.position_embeddings, module.token_type_embeddings
        return EmbeddingWeights(
            word_embeddings=array(module.word_embeddings.weight),
            positions=None if positions is None else array(positions.weight),
            types=None if types is None else array(types.weight),
            norm=Norm.of(module.LayerNorm),
        )

    def encoder_layers(self, backbone: PreTrainedModel) -> list[LayerWeights]:
        encoder = backbone.encoder
        with torch.no_grad():
            by_distance = encoder.get_rel_embedding()[self._rows(encoder)]
        return [self._layer(layer, by_distance) for layer in encoder.layer]

    def _rows(self, encoder: nn.Module) -> Tensor:
        """(2 L - 1,) row of the table of relative positions for keys at position 1 - L to L - 1 relative to the query.

        Distant positions share rows, in logarithmic buckets.
        """
        distances = torch.arange(self.max_length - 1, -self.max_length, -1)  # transformers counts from the key
        if encoder.position_buckets > 0:
            distances = make_log_bucket_position(distances, encoder.position_buckets, encoder.max_relative_positions)
        span = encoder.rel_embeddings.num_embeddings // 2
        return (distances.long() + span).clamp(0, 2 * span - 1)

    def _layer(self, layer: nn.Module, by_distance: Tensor) -> LayerWeights:
        attention = layer.attention.self
        shared = attention.share_att_key
        key, query = (
            (attention.key_proj, attention.query_proj) if shared else (attention.pos_key_proj, attention.pos_query_proj)
        )
        return LayerWeights(
            qkv=Linear.of(attention.query_proj, attention.key_proj, attention.value_proj),
            output=Linear.of(layer.attention.output.dense),
            attention_norm=Norm.of(layer.attention.output.LayerNorm),
            up=Linear.of(layer.intermediate.dense),
            down=Linear.of(layer.output.dense),
            output_norm=Norm.of(layer.output.LayerNorm),
            heads=self.config.num_attention_heads,
            activation=self.config.hidden_act,
            relative=RelativeTerms(self._by_head(key, by_distance), self._by_head(query, by_distance)),
        )

    def _by_head(self, projection: nn.Linear, by_distance: Tensor) -> Array:
        """(heads, 2 L - 1, d / heads) projected rows."""
        with torch.no_grad():
            rows = array(projection(by_distance))
        return np.ascontiguousarray(rows.reshape(len(rows), self.config.num_attention_heads, -1).transpose(1, 0, 2))
