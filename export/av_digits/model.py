"""The network: two small convolutional encoders, one attention block over both, two heads.

Only operators that quantize well and that every engine knows: Conv (batch norm is folded by the exporter), Relu,
MatMul, Softmax, LayerNormalization, Mul, ReduceMean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WIDTH = 128
HEADS = 4
AUDIO_TOKENS = 25
VIDEO_TOKENS = 8


def conv(inputs: int, outputs: int, kernel, stride, padding) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Attention(nn.Module):
    """Self-attention, 4 heads of 32, written so that the export is plain MatMul and Softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = AUDIO_TOKENS + VIDEO_TOKENS
        # The batch is the only dimension left open, so that the export holds constant shapes.
        q, k, v = (
            f(x).reshape(-1, tokens, HEADS, WIDTH // HEADS).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(2, 3) * (1.0 / math.sqrt(WIDTH // HEADS)), dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(-1, tokens, WIDTH))


class AvDigits(nn.Module):
    """`forward(audio [n, 40, 100], video [n, 8, 32, 32])` gives `digit [n, 10]` and `match [n, 1]`, both logits."""

    def __init__(self) -> None:
        super().__init__()
        self.audio = nn.Sequential(
            conv(1, 16, 5, 2, 2),  # 20 x 50
            conv(16, 32, 3, 2, 1),  # 10 x 25
            conv(32, 64, 3, (2, 1), 1),  # 5 x 25
            conv(64, WIDTH, (5, 3), 1, (0, 1)),  # 1 x 25
        )
        self.video = nn.Sequential(
            conv(1, 16, 3, 2, 1),  # 16 x 16
            conv(16, 32, 3, 2, 1),  # 8 x 8
            conv(32, 64, 3, 2, 1),  # 4 x 4
            conv(64, 64, 3, 1, 1),  # 4 x 4
            nn.Conv2d(64, 64, 4, groups=64, bias=False),  # 1 x 1: a learned pooling
            nn.BatchNorm2d(64),
            nn.ReLU(),
            conv(64, WIDTH, 1, 1, 0),
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, AUDIO_TOKENS + VIDEO_TOKENS, WIDTH))
        self.before = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.between = nn.LayerNorm(WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 192), nn.ReLU(), nn.Linear(192, WIDTH))
        self.digit = nn.Linear(2 * WIDTH, 10)
        self.audio_key = nn.Linear(WIDTH, 32)
        self.video_key = nn.Linear(WIDTH, 32)
        self.match = nn.Sequential(nn.Linear(2 * WIDTH + 32, 48), nn.ReLU(), nn.Linear(48, 1))
        # For training only: each modality must know its digit by itself.
        self.spoken = nn.Linear(32, 10)
        self.shown = nn.Linear(32, 10)
        self.drop = nn.Dropout(0.15)

    def forward(self, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        digit, match, _, _ = self.everything(audio, video)
        return digit, match

    def everything(self, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Also the training-only logits of each modality by itself."""
        a = self.audio(audio.reshape(-1, 1, 40, 100)).reshape(-1, WIDTH, AUDIO_TOKENS).transpose(1, 2)
        v = self.video(video.reshape(-1, 1, 32, 32)).reshape(-1, VIDEO_TOKENS, WIDTH)
        x = torch.cat([a, v], dim=1) + self.position
        x = x + self.attention(self.before(x))
        x = x + self.feed(self.between(x))
        both = torch.cat([x[:, :AUDIO_TOKENS].mean(1), x[:, AUDIO_TOKENS:].mean(1)], dim=1)
        both = self.drop(both)
        ka, kv = self.audio_key(self.drop(a.mean(1))), self.video_key(self.drop(v.mean(1)))
        match = self.match(torch.cat([both, ka * kv], dim=1))
        return self.digit(both), match, self.spoken(ka), self.shown(kv)

    def exported_parameters(self) -> int:
        """Parameters of the exported graph: without the training-only heads."""
        skip = ("spoken.", "shown.")
        return sum(p.numel() for n, p in self.named_parameters() if not n.startswith(skip))
