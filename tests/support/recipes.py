"""The published FuseO1 models, and what they were merged from."""

from __future__ import annotations

R1 = "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"
QWQ = "Qwen/QwQ-32B-Preview"

#: name -> (pivot, targets in the order of the authors' configs)
PUBLISHED = {
    "FuseO1-DeepSeekR1-QwQ-32B-Preview": ("Qwen/Qwen2.5-32B", [QWQ, R1]),
    "FuseO1-DeepSeekR1-QwQ-SkyT1-32B-Preview": (
        "Qwen/Qwen2.5-32B",
        [QWQ, R1, "NovaSky-AI/Sky-T1-32B-Preview"],
    ),
    "FuseO1-DeepSeekR1-QwQ-SkyT1-Flash-32B-Preview": (
        "Qwen/Qwen2.5-32B",
        [QWQ, R1, "NovaSky-AI/Sky-T1-32B-Flash"],
    ),
    "FuseO1-DeepSeekR1-Qwen2.5-Coder-32B-Preview": (
        "Qwen/Qwen2.5-Coder-32B",
        ["Qwen/Qwen2.5-Coder-32B-Instruct", R1],
    ),
    "FuseO1-DeepSeekR1-Qwen2.5-Instruct-32B-Preview": (
        "Qwen/Qwen2.5-32B",
        ["Qwen/Qwen2.5-32B-Instruct", R1],
    ),
}
