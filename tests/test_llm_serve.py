"""A real server: `transformers serve` with a tiny random causal model. On demand, where the
packages are there that it needs: pip install 'transformers[serving]'."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from insight_nb.base.core import InputError
from insight_nb.methods.classical import Majority
from insight_nb.methods.evaluation import Evaluation
from insight_nb.methods.ladder import Ladder
from insight_nb.methods.llm import CallBudget, LLMClient, ReplyCache
from insight_nb.methods.llm_rows import Paraphraser
from insight_nb.methods.llm_rung import OUTCOMES, PromptedLLM, compare_prompted

for package in ("fastapi", "openai", "uvicorn"):
    pytest.importorskip(package)
pytestmark = pytest.mark.slow
NAMES = ("a", "b", "c", "d")
TOLD = {"a": "about a card", "b": "about a loan", "c": "about a refund", "d": "退款"}
TEMPLATE = ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}")


def make_model(folder):
    "Random weights; a token is a byte, and only letters of labels, spaces and the end are written."
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bare = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>",
                                        pad_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096,
        bos_token_id=0, eos_token_id=1, pad_token_id=1))
    model.generation_config.do_sample = True  # but for a temperature of 0
    model.generation_config.suppress_tokens = [
        i for i, t in enumerate(tokens) if t not in ("</s>", "Ġ", *NAMES)]
    model.save_pretrained(folder)
    return tokenizer


class Server:
    def __init__(self, folder):
        self.tokenizer, self.model = make_model(folder / "tiny"), str(folder / "tiny")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}/v1", folder / "log"
        start = "from transformers.cli.transformers import main; main()"
        given = ["serve", self.model, "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", start, *given], stdout=log, stderr=log,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})

    def wait(self, seconds=120):
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                return LLMClient(self.url, self.model, retries=0).check_reachable()
            except InputError:
                time.sleep(0.5)
        pytest.fail(f"the server did not start: {self.log.read_text()[-800:]}")

    def answered(self):
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')

    def count(self, messages):
        "The tokens of a prompt, counted here."
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True,
                                                  tokenize=False)
        return len(self.tokenizer(text)["input_ids"])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("server"))
    try:
        found.wait()
        yield found
    finally:
        found.process.terminate()
        found.process.wait(20)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("INSIGHT_NB_LLM_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


class Spy(LLMClient):
    "Keeps what was asked, and what came back."

    def ask(self, messages, **settings):
        reply = super().ask(messages, **settings)
        if reply is not None and not reply.cached:
            self.seen.append((messages, reply))
        return reply


def client(server, folder=None, **limits):
    spy = Spy(server.url, server.model, CallBudget(**limits), ReplyCache(folder), workers=2)
    spy.seen = []
    return spy


def rows(n=160, test=80):
    y = np.random.default_rng(0).choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    texts = [f"message number {i} 第{i}条" for i in range(n)]
    return Evaluation(texts[test:], y[test:], texts[:test], y[:test], NAMES)


@pytest.mark.parametrize("votes", [1, 2])
def test_counted_as_the_server_says(server, tmp_path, votes):
    exam, before = rows(), server.answered()
    spy = client(server, tmp_path, price_in=2.0, price_out=8.0)

    def climb(asked):
        rung = PromptedLLM(asked, descriptions=TOLD, rows=None, votes=votes)
        return Ladder(exam, [Majority(), rung], on_progress=lambda _: None).run()

    ladder = climb(spy)
    f = ladder.done[-1].details["llm"]
    assert len(spy.seen) == f["replies"] == spy.budget.sent == server.answered() - before
    assert f["tokens_in"] == sum(server.count(messages) for messages, _ in spy.seen)
    assert f["tokens_out"] == sum(r.tokens_out for _, r in spy.seen)
    assert f["tokens_estimated"] == 0
    assert all(len(r.text) <= r.tokens_out <= 25 for _, r in spy.seen)
    assert votes == 1 or f["answered"] + f["repaired"] > 10  # drawn, not the likeliest
    assert f["money"] == pytest.approx((2 * f["tokens_in"] + 8 * f["tokens_out"]) / 1e6)
    assert f["asked"] == sum(f[k] for k in OUTCOMES) == 80
    found = compare_prompted(ladder)
    checks = {c.name: c.passed for c in found.checks()}
    print(f"votes {votes}: {len(spy.seen)} requests, {f['tokens_in']:,} tokens read, "
          f"{f['tokens_out']:,} written, { {k: f[k] for k in OUTCOMES} }, accuracy "
          f"{ladder.done[-1].metrics['accuracy']}, beside the majority {found.over_majority}")
    assert found.over_majority.low <= 0 and not checks["llm_beats_majority"]
    again = client(server, tmp_path, price_in=2.0, price_out=8.0)
    step = climb(again).done[-1]
    assert not again.seen and step.details["llm"]["from_cache"] == f["replies"]
    assert step.metrics == ladder.done[-1].metrics


def test_a_budget_ends_it(server):
    before = server.answered()
    rung = PromptedLLM(client(server, calls=7), descriptions=TOLD, rows=None)
    step = Ladder(rows(), [Majority(), rung], on_progress=lambda _: None).run().done[-1]
    assert server.answered() - before == 7 and 0 < step.details["llm"]["asked"] <= 7


def test_no_wording_of_a_random_model_is_taken(server):
    way = Paraphraser(client(server), rows=6)
    texts = [f"where is my card, order {i}?" for i in range(4)] + ["我的钱在哪里", "退款"]
    assert way(texts) == texts and way.evidence()["reworded"] == 0
    assert len(way.client.seen) == way.evidence()["texts"] == 6


def test_a_model_that_is_not_there(server):
    with pytest.raises(InputError) as found:
        LLMClient(server.url, "nobody/nothing", retries=0).ask([{"role": "user", "content": "a"}])
    assert "\n" not in str(found.value)
    print(found.value)
