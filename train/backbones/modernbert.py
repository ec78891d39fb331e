"""ModernBERT (Ettin, mmBERT): pre-norm layers with a gated feed-forward, rotary positions and local attention."""

from __future__ import annotations

import copy

from torch import nn
from transformers import PreTrainedModel

from berxit.train.backbones.adapter import Adapter
from berxit.train.backbones.weights import ACTIVATIONS, EmbeddingWeights, LayerWeights, Linear, Norm, array

LOCAL = "sliding_attention"


class ModernBertAdapter(Adapter):
    layer_list = "layers."
    task_heads = (*Adapter.task_heads, "head.", "decoder.")
    implemented = {  # noqa: RUF012 - as the base class has it
        **Adapter.implemented,
        "hidden_activation": ACTIVATIONS,
    }

    def unsupported(self) -> str | None:
        kinds = {str(each["rope_type"]) for each in self.config.rope_parameters.values() if each} - {"default"}
        return f"rope_type '{min(kinds)}', only 'default' is supported" if kinds else None

    def keep_layers(self, layers: int) -> None:
        super().keep_layers(layers)
        self.config.layer_types = self.config.layer_types[:layers]

    @property
    def dropout(self) -> float:
        return float(self.config.classifier_dropout)

    def final_norm(self, backbone: PreTrainedModel) -> nn.Module | None:
        return copy.deepcopy(backbone.final_norm)

    def remove_pooler(self, backbone: PreTrainedModel) -> None:
        backbone.final_norm = nn.Identity()

    def embeddings(self, backbone: PreTrainedModel) -> EmbeddingWeights:
        module = backbone.embeddings
        return EmbeddingWeights(
            word_embeddings=array(module.tok_embeddings.weight), positions=None, types=None, norm=Norm.of(module.norm)
        )

    def encoder_layers(self, backbone: PreTrainedModel) -> list[LayerWeights]:
        return [self._layer(layer, backbone.rotary_emb) for layer in backbone.layers]

    def _layer(self, layer: nn.Module, rotary: nn.Module) -> LayerWeights:
        kind = layer.attention_type
        return LayerWeights(
            qkv=Linear.of(layer.attn.Wqkv),
            output=Linear.of(layer.attn.Wo),
            attention_norm=None if isinstance(layer.attn_norm, nn.Identity) else Norm.of(layer.attn_norm),
            up=Linear.of(layer.mlp.Wi),
            down=Linear.of(layer.mlp.Wo),
            output_norm=Norm.of(layer.mlp_norm),
            heads=self.config.num_attention_heads,
            activation=self.config.hidden_activation,
            pre_norm=True,
            gated=True,
            rotary=array(getattr(rotary, f"{kind}_inv_freq")),
            window=self.config.sliding_window if kind == LOCAL else None,
        )
