"""A real vLLM server under load while a trainer pushes versions: no request fails, and every token is some version's own."""

from __future__ import annotations

import contextlib
import time

from load import Load, Request, complete
from world import World, run

UPDATES = 20
PROMPT = list(range(40, 110))  # more than two blocks of the cache


def check_unharmed(requests: list[Request]) -> None:
    assert not [request.error for request in requests if request.error]
    assert {request.finish for request in requests} <= {"length"}


@contextlib.contextmanager
def under_load(world: World, clients: int, tokens: int, already: int = 20):
    """Requests are in flight and have made `already` tokens when the block begins; they end with it."""
    load = Load(world.server.url, clients, tokens)
    try:
        while sum(len(request.tokens) for request in load.requests) < already:
            time.sleep(0.05)
        yield load
    finally:
        load.stop()


def test_twenty_updates_under_load_lose_no_request_and_mix_no_token(world: World) -> None:
    preempted = world.server.preemptions()
    rows = []
    with under_load(world, clients=3, tokens=40, already=60) as load:
        for _ in range(UPDATES):
            began = time.monotonic()
            update = world.update()
            ended = time.monotonic()
            time.sleep(0.3)
            rows.append((update, load.longest_gap_s(began, ended), load.usual_gap_s(began)))
            assert world.client.versions() == [str(world.version)]
    requests = load.requests
    check_unharmed(requests)
    assert world.server.preemptions() == preempted
    print("\nversion  transfer  commit call  longest gap  usual gap")
    for update, longest, usual in rows:
        print(f"{update.version:7} {update.transfer_s * 1e3:7.0f} ms {update.commit_ms:9.1f} ms {longest * 1e3:9.1f} ms {usual * 1e3:8.1f} ms")
    straddlers = [request for request in requests if len(request.spans or []) > 1]
    whole = [request for request in requests if len(request.spans or []) == 1]
    print(f"{len(requests)} requests, {len(straddlers)} of them over a commit")
    assert len(straddlers) >= UPDATES / 2 and whole
    assert max(int(span["version"]) for request in requests for span in request.spans or [] if span["version"] != "default") == world.version
    checked = [(request, world.spans(request), "keep") for request in straddlers[:12] + whole[:4]]
    assert world.wrong_tokens(checked) == [[]] * len(checked)
    others = [(request, [("A" if letter == "B" else "B", 0) for letter, _ in world.spans(request)], "keep") for request in whole[:2]]
    assert all(world.wrong_tokens(others)), "the reference cannot tell A from B, so it proves nothing"
    renewed = [(request, world.spans(request), "recompute") for request in straddlers[:6]]
    assert any(world.wrong_tokens(renewed)), "the reference cannot tell kept keys and values from new ones"


def test_requests_before_and_after_a_commit_are_the_old_and_the_new_weights(world: World) -> None:
    before = complete(world.server.url, PROMPT, 24)
    old = world.letter
    world.update()
    after = complete(world.server.url, PROMPT, 24)  # the same prompt: the prefix cache must not answer it
    assert before.tokens != after.tokens
    assert world.wrong_tokens([(before, [(old, 0)], "keep"), (after, [(world.letter, 0)], "keep")]) == [[], []]
    world.update()
    assert complete(world.server.url, PROMPT, 24).tokens == before.tokens


def test_recompute_gives_every_later_token_the_new_weights_alone(world: World) -> None:
    with under_load(world, clients=2, tokens=60) as load:
        update = world.update(kv="recompute")
        time.sleep(0.5)
    check_unharmed(load.requests)
    straddlers = [request for request in load.requests if len(request.spans or []) == 2]
    assert straddlers and update.paused_ms > 0
    assert world.wrong_tokens([(request, world.spans(request), "recompute") for request in straddlers]) == [[]] * len(straddlers)


def test_abort_ends_what_is_in_flight_with_tokens_of_the_old_weights(world: World) -> None:
    old = world.letter
    with under_load(world, clients=2, tokens=300) as load:
        in_flight = [request for request in load.requests if not request.finish]
        load.stop_when_idle()
        world.update(kv="abort")
    assert [request.finish for request in in_flight] == ["abort"] * len(in_flight) != []
    assert world.wrong_tokens([(request, [(old, 0)], "keep") for request in in_flight if request.tokens])[0] == []
    after = complete(world.server.url, PROMPT, 8)
    assert world.wrong_tokens([(after, [(world.letter, 0)], "keep")]) == [[]]


def test_openais_client_reads_other_text_after_a_commit_and_the_old_text_after_going_back(world: World) -> None:
    texts = []
    for _ in range(3):
        texts += run("openai_client.py", world.server.url, stdin="What is the capital of France?\n")
        world.update()
    assert texts[0] != texts[1] and texts[0] == texts[2]
    assert all('"length"' in text or '"stop"' in text for text in texts)


def test_requests_in_flight_do_not_notice_that_the_trainer_is_gone_and_comes_back(world: World) -> None:
    shown = world.client.versions()
    with under_load(world, clients=2, tokens=60) as load:
        with world.without_trainer():
            made = sum(len(request.tokens) for request in load.requests)
            while sum(len(request.tokens) for request in load.requests) < made + 20:
                time.sleep(0.05)
        assert world.client.versions() == shown
        world.update()
    check_unharmed(load.requests)
    checked = [(request, world.spans(request), "keep") for request in load.requests]
    assert world.wrong_tokens(checked) == [[]] * len(checked)
