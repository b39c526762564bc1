"""Qwen2.5-7B-Instruct on a TPU slice or several GPUs, and any OpenAI-compatible LLM. Untried.

`python -m collab.plan --config=configs/qwen2_5_7b.py --slice=v5p-8` says what it needs; how many
devices lie along each axis is config.mesh. The weights are a folder as Hugging Face publishes it.
"""

import ml_collections

from collab.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config()
    config.task.update({"name": "gsm", "train": 4096, "validation": 64, "test": 256})
    config.tokenizer.kind = "hf"
    config.model.update({"preset": "qwen2_5_7b", "weights": "hf:weights/Qwen2.5-7B-Instruct"})
    config.model.update({"dtype": "bfloat16", "remat": "layers"})
    config.rollout.update({"rows": 256, "capacity": 1024, "prompts_per_call": 8})
    config.rollout.live_lengths = 4
    config.rollout.temperature = 0.7
    config.rollout.update({"max_segments": 12, "max_asks": 4, "think_tokens": 128})
    config.rollout.update({"request_tokens": 64, "answer_tokens": 96, "reply_tokens": 96})
    config.llm.update({"backend": "openai", "model": "helper", "deadline_s": 60.0})
    config.cold_start.update({"steps": 200, "batch": 256, "learning_rate": 1e-5, "warmup": 10})
    config.cold_start.update({"ask_share": 0.25, "ask_lean": 0.0, "judge": "answer"})
    config.cold_start.update({"curriculum": (), "label_problems": 64, "label_samples": 4})
    config.rl.update({"iterations": 200, "problems": 32, "samples": 8, "constant_problems": 0})
    config.rl.update({"learning_rate": 1e-6, "final_learning_rate": 1e-7, "chunk_rows": 4})
    return config
