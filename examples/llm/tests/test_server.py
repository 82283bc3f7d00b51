"""`llm serve` as the official `openai` client sees it, and as the HTTP underneath it is."""

import json
import math
import threading
import urllib.error
import urllib.request

import openai
import pytest

from conftest import Server, serving, until

PROMPT = "The capital of France is"


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=600)


def metrics(server: Server) -> dict[str, float]:
    text = urllib.request.urlopen(server.url + "/metrics").read().decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def idle(server: Server) -> bool:
    now = metrics(server)
    return (
        now["llm_requests_running"] == 0
        and now["llm_requests_waiting"] == 0
        and now["llm_http_requests_open"] == 0
        and now["llm_kv_cache_usage_ratio"] == 0
    )


def test_models_and_health(server: Server, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smol"]
    assert client.models.retrieve("smol").id == "smol"
    assert urllib.request.urlopen(server.url + "/health").status == 200
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt=PROMPT)


def test_a_completion_whole_and_streamed_is_the_same(client: openai.OpenAI) -> None:
    asked = {"model": "smol", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**asked)
    assert whole.usage.prompt_tokens == 5
    assert whole.usage.completion_tokens <= 24
    assert "Paris" in whole.choices[0].text
    assert whole.choices[0].finish_reason in ("length", "stop")
    stream = client.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    pieces = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert len(pieces) > 3


def test_a_chat_whole_and_streamed_is_the_same(client: openai.OpenAI) -> None:
    asked = {
        "model": "smol",
        "messages": [
            {"role": "system", "content": "You answer in one word."},
            {"role": "user", "content": [{"type": "text", "text": "What is two plus two?"}]},
        ],
        "max_completion_tokens": 32,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked)
    message = whole.choices[0].message
    assert message.role == "assistant" and message.content
    assert "<|im_end|>" not in message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_prompts_of_every_kind_and_n(client: openai.OpenAI) -> None:
    asked = {"model": "smol", "max_tokens": 4, "temperature": 0}
    ids = [504, 3575, 282, 4649, 314]
    texts = client.completions.create(prompt=[PROMPT, "One, two, three,"], n=2, **asked)
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    first, second, third, fourth = (choice.text for choice in texts.choices)
    assert first == second and third == fourth and first != third
    assert client.completions.create(prompt=ids, **asked).choices[0].text == first
    many = client.completions.create(prompt=[ids, ids], **asked)
    assert [choice.text for choice in many.choices] == [first, first]
    echoed = client.completions.create(prompt=PROMPT, echo=True, **asked)
    assert echoed.choices[0].text == PROMPT + first


def test_seeds_draw_the_same_and_different_texts(client: openai.OpenAI) -> None:
    def draw(**more):
        answer = client.completions.create(
            model="smol", prompt="Once upon a time", max_tokens=16, temperature=1.0, **more
        )
        return [choice.text for choice in answer.choices]

    assert draw(seed=7, n=3) == draw(seed=7, n=3)
    assert len(set(draw(seed=7, n=8))) > 4
    assert draw(seed=7) != draw(seed=8)
    assert len({draw()[0] for _ in range(4)}) > 1
    near = draw(seed=1, top_p=1e-6, n=3)
    assert len(set(near)) == 1, "only the likeliest token is in the nucleus"


def test_stop_texts_are_left_out(client: openai.OpenAI) -> None:
    asked = {"model": "smol", "prompt": "1, 2, 3, 4, 5, 6, 7,", "max_tokens": 40, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[5:8]
    cut = client.completions.create(**asked, stop=["never there", stop]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.text == whole[: whole.index(stop)]
    stream = client.completions.create(**asked, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == cut.text


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="smol", prompt=PROMPT, max_tokens=6, temperature=0, logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    for chosen, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert len(top) == 3 and max(top.values()) == pytest.approx(chosen)
        assert sum(math.exp(logprob) for logprob in top.values()) <= 1.0001
    chat = client.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": "Say hello."}],
        max_tokens=5,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    content = chat.choices[0].logprobs.content
    assert len(content) == chat.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)
        assert bytes(token.bytes).decode(errors="replace") == token.token


def test_biases_and_penalties_change_the_text(client: openai.OpenAI) -> None:
    def text(**more):
        asked = {"model": "smol", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        return client.completions.create(**asked, **more).choices[0].text

    plain = text()
    assert text(logit_bias={"7042": -100}) != plain, "7042 is Paris"
    assert "Paris" not in text(logit_bias={"7042": -100})
    repeated = text(logit_bias={"7042": 100})
    assert repeated.count("Paris") == 8
    assert text(logit_bias={"7042": 3}, presence_penalty=2.0, frequency_penalty=2.0) != repeated


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"presence_penalty": 9}, "presence_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 500}}, "logit_bias"),
        ({"logprobs": 99}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"extra_body": {"max_tokns": 5}}, "max_tokns"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [99_999_999]}, "prompt"),
        ({"prompt": [504] * 9000}, "prompt"),
    ],
)
def test_bad_fields_are_refused_by_name(client: openai.OpenAI, body: dict, param: str) -> None:
    asked = {"model": "smol", "prompt": PROMPT, "max_tokens": 4, **body}
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**asked)
    assert refused.value.body["param"] == param
    assert refused.value.body["message"].startswith(f"{param}: ")


def test_bodies_that_are_no_requests(server: Server) -> None:
    for body, status in [(b"{", 400), (b"[]", 400), (b'{"model": "smol"}', 400)]:
        request = urllib.request.Request(
            server.url + "/v1/completions", body, {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == status
        assert json.load(refused.value)["error"]["type"] == "invalid_request_error"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server.url + "/nothing")
    assert refused.value.code == 404


def test_a_client_that_hangs_up_is_forgotten(server: Server, client: openai.OpenAI) -> None:
    before = metrics(server)["llm_requests_cancelled_total"]
    long = {"model": "smol", "prompt": PROMPT, "max_tokens": 2000, "extra_body": {"ignore_eos": True}}
    for _ in range(3):
        stream = client.completions.create(**long, stream=True)
        next(iter(stream))
        stream.close()
    # One that waits for all of it, and loses patience.
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(**long)
    until(lambda: metrics(server)["llm_requests_cancelled_total"] >= before + 4)
    until(lambda: idle(server))


def test_a_text_that_ends_at_a_stop_text_is_finished_and_not_given_up(
    server: Server, client: openai.OpenAI
) -> None:
    long = {"model": "smol", "prompt": PROMPT, "max_tokens": 300, "temperature": 0}
    whole = client.completions.create(**long).choices[0].text
    before = metrics(server)
    for stream in (False, True):
        answer = client.completions.create(**long, stop=whole[40:50], stream=stream)
        for chunk in answer if stream else ():
            last = chunk.choices[0].finish_reason if chunk.choices else None
            assert last in (None, "stop")
    until(lambda: idle(server))
    now = metrics(server)
    ended = [f"llm_requests_{how}_total" for how in ("finished", "cancelled")]
    assert [now[name] - before[name] for name in ended] == [2, 0]


def test_a_full_queue_answers_429(program: str, model: str) -> None:
    options = ["--max-num-seqs", "2", "--max-waiting", "2", "--served-model-name", "smol"]
    with serving(program, model, *options) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        long = {"model": "smol", "prompt": PROMPT, "max_tokens": 1000, "extra_body": {"ignore_eos": True}}
        streams = [client.completions.create(**long, stream=True) for _ in range(2)]
        for stream in streams:
            next(iter(stream))
        streams += [client.completions.create(**long, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(**long)
        assert refused.value.response.headers["retry-after"]
        # All of an answer's completions are taken, or none.
        before = metrics(server)["llm_requests_waiting"]
        with pytest.raises(openai.RateLimitError):
            client.completions.create(**long, n=2)
        until(lambda: metrics(server)["llm_requests_waiting"] == before)
        for stream in streams:
            stream.close()
        until(lambda: idle(server))
        assert client.completions.create(model="smol", prompt=PROMPT, max_tokens=2).choices


def test_stopping_lets_requests_end(program: str, model: str) -> None:
    # However slow the machine is.
    options = ["--drain-seconds", "900", "--served-model-name", "smol"]
    with serving(program, model, *options) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        ended = []

        def run() -> None:
            stream = client.completions.create(
                model="smol", prompt=PROMPT, max_tokens=200, stream=True,
                extra_body={"ignore_eos": True},
            )
            ended.append([chunk.choices[0].finish_reason for chunk in stream][-1])

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: metrics(server)["llm_requests_running"] == 4)
        assert server.stop(900) == 0
        for thread in threads:
            thread.join()
        assert ended == ["length"] * 4


def test_stopping_gives_up_what_takes_too_long(program: str, model: str) -> None:
    options = ["--drain-seconds", "1", "--served-model-name", "smol"]
    with serving(program, model, *options) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        stream = client.completions.create(
            model="smol", prompt=PROMPT, max_tokens=8000, stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        assert server.stop() == 0
        with pytest.raises(Exception):
            list(stream)
