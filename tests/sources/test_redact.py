"""Secrets leave command lines, and what detectors look for stays."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlsecd.sources.redact import redact

SECRET = "Zx9secretQ7w"

HIDDEN = [
    ["vllm", "serve", "--api-key", SECRET],
    ["vllm", "serve", f"--api-key={SECRET}"],
    ["vllm", "serve", "--api-key", f"-{SECRET}"],
    ["server", f"--hf_token={SECRET}"],
    ["server", "--hfToken", SECRET],
    ["server", "--use_auth_token", SECRET],
    ["env", f"HF_TOKEN={SECRET}", "python", "x.py"],
    ["docker", "run", "-e", f"OPENAI_API_KEY={SECRET}", "image"],
    ["docker", "run", f"-eOPENAI_API_KEY={SECRET}", "image"],
    ["docker", "run", f"--env=OPENAI_API_KEY={SECRET}", "image"],
    ["jupyter", "lab", f"--ServerApp.token={SECRET}"],
    ["jupyter", "lab", f"--IdentityProvider.token='{SECRET}'"],
    ["helm", "--set", f"auth.password={SECRET},replicas=3"],
    ["sh", "-c", f"export HF_TOKEN={SECRET}; exec vllm serve"],
    ["sh", "-c", f"vllm serve --api-key {SECRET} --port 8000"],
    ["sh", "-c", f'vllm serve --api-key "{SECRET} and more {SECRET}" --port 8000'],
    ["sh", "-c", f'curl -d \'{{"password": "{SECRET}"}}\' localhost'],
    ["sh", "-c", f'curl -d "{{\\"password\\": \\"{SECRET}\\"}}" localhost'],
    ["curl", "-H", f"Authorization: Bearer {SECRET}", "http://x"],
    ["curl", "-H", f"authorization: {SECRET}", "http://x"],
    ["curl", "-H", f"X-Api-Key: {SECRET}", "http://x"],
    ["curl", "-H", f"Cookie: a=1; session={SECRET}", "http://x"],
    ["curl", "-u", f"me:{SECRET}", "http://x"],
    ["curl", f"-ume:{SECRET}", "http://x"],
    ["curl", "--user", f"me:{SECRET}", "http://x"],
    ["curl", f"https://me:{SECRET}@example.org/x"],
    ["curl", f"https://me:{SECRET}/more@example.org/x"],
    ["git", "clone", f"https://{SECRET}@example.org/x"],
    ["curl", f"https://example.org/x?a=1&token={SECRET}&b=2"],
    ["curl", f"https://example.org/x?X-Amz-Signature={SECRET}"],
    ["sshpass", "-p", SECRET, "ssh", "host"],
    ["sudo", "/usr/bin/sshpass", f"-p{SECRET}", "ssh", "host"],
    ["mysql", f"-p{SECRET}", "db"],
    ["redis-cli", "-a", SECRET],
    ["openssl", "enc", "-pass", f"pass:{SECRET}"],
    ["x", f"postgresql://u:{SECRET}@db/x"],
    ["x", "--dsn", f"db {SECRET}"],
    ["x", f"hf_{SECRET}"],
    ["x", f"sk-{SECRET}"],
    ["x", "--foo", f"bar,sk-proj-{SECRET}"],
    ["x", f"ghp_{SECRET}{SECRET}"],
    ["x", f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx{SECRET}.{SECRET}"],
    ["x", f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----"],
    ["x", f'--password="{SECRET}'],  # cut off before its closing quote
    ["x", f"--key={SECRET}"],
]

KEPT = [
    ["vllm", "serve", "meta/llama", "--tokenizer", "auto", "--max-tokens", "5", "--trust-remote-code"],
    ["vllm", "serve", "--tokenizer-mode", "slow", "--eos-token-id", "2", "--bos-token", "<s>"],
    ["server", "--token-file", "/run/token", "--password-file=/run/pw", "--api-key-file", "k"],
    ["jupyter", "lab", "--ServerApp.token=", "--ServerApp.password=''", "--ip=0.0.0.0"],
    ["server", "--ssl-key", "host.pem", "--ssl-keyfile=/etc/x.pem", "--key", "/etc/ssl/x.key", "--sort-key=ts"],
    ["docker", "run", "-p", "8000:8000", "--user", "1000:1000", "image@sha256:abc"],
    ["docker", "pull", "registry:5000/image@sha256:abc"],
    ["curl", "http://localhost:8000/v1/models?limit=5"],
    ["python", "-c", "print('hello world: token counting')"],
    ["docker", "login", "--password-stdin", "registry.example.org"],
    ["server", "--no-password", "db", "--enable-token-auth", "yes"],
    ["sleep", "600"],
    ["", "", "x"],
    [],
]


@pytest.mark.parametrize("command", HIDDEN, ids=lambda command: " ".join(command)[:60])
def test_hides(command: list[str]) -> None:
    redacted = redact(command)
    assert SECRET not in " ".join(redacted)
    assert len(redacted) == len(command)
    assert redacted[0] == command[0]


@pytest.mark.parametrize("command", KEPT, ids=lambda command: " ".join(command)[:60])
def test_keeps(command: list[str]) -> None:
    assert redact(command) == tuple(command)


def test_keeps_what_stands_around_a_secret() -> None:
    assert redact(["vllm", "serve", "m", "--api-key", SECRET, "--host", "0.0.0.0"]) == (
        *("vllm", "serve", "m", "--api-key", "[redacted]", "--host", "0.0.0.0"),
    )
    assert redact(["sh", "-c", f"A_TOKEN={SECRET} vllm serve --host 0.0.0.0"]) == (
        *("sh", "-c", "A_TOKEN=[redacted] vllm serve --host 0.0.0.0"),
    )


arguments = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40), max_size=6
)


@given(before=arguments, after=arguments, name=st.sampled_from(["--api-key", "--password", "-token", "--a.b-secret"]))
def test_whatever_stands_around_it(before: list[str], after: list[str], name: str) -> None:
    for middle in ([f"{name}={SECRET}"], ["x", name, SECRET], [f"hf_{SECRET}"]):
        redacted = redact([*before, *middle, *after])
        assert SECRET not in " ".join(redacted)
        assert len(redacted) == len(before) + len(middle) + len(after)


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "-",
        "a ",
        "--a ",
        "://",
        "://a:",
        '"',
        "\\",
        "token=",
        'token="',
        "eyJ-",
        "sk-",
        "basic ",
        "-----BEGIN ",
        "=:",
    ],
)
def test_is_linear_in_hostile_input(piece: str) -> None:
    def seconds(size: int) -> float:
        text = (piece * size)[:size]
        best = 1.0
        for _ in range(3):
            start = time.thread_time()
            redact([text, text])
            best = min(best, time.thread_time() - start)
        return best

    seconds(2048)
    assert seconds(2048) < 0.05
    assert seconds(16_384) < 0.4  # quadratic would be 64 times the time of 2,048
