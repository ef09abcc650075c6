"""Who answers: Gemini, or any server that speaks OpenAI's chat completions. One request a call, nothing retried here.

Which one: GEMINI_API_KEY, or OPENAI_BASE_URL (with OPENAI_API_KEY where it wants one), in the environment. Keys stay in
an Endpoint and are taken out of every text that comes back.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from jaxnano.cli import UserError
from research.outside.llm.fault import Answer, Fault, Provider
from research.text import one_line

GEMINI_MODEL = "gemini-flash-latest"
HIDDEN = "[hidden]"
MAX_REASON = 240
SECRET = re.compile(r"(?i)((?:api[_-]?key|key|token|authorization)[\"']?\s*[=:]\s*[\"']?|bearer\s+)[^\s\"'&,;}]{8,}")
_SHORT = 8  # "EMPTY", "ollama" ... stand where a server wants no key


@dataclass(frozen=True)
class Endpoint:
    """provider, model: of the ledger's `call` events. key, url: of nothing that is ever written."""

    provider: Literal["gemini", "openai"]
    model: str
    key: str = field(default="", repr=False)
    url: str | None = field(default=None, repr=False)

    def scrub(self, text: str) -> str:
        """`text` without the key, or the password of the address, or what looks like one."""
        for secret in self._secrets():
            text = text.replace(secret, HIDDEN)
        return SECRET.sub(rf"\g<1>{HIDDEN}", text)

    def hide(self, data: Any) -> Any:
        """Plain data without the key, whatever a server echoes and however it was escaped."""
        match data:
            case str():
                for secret in self._secrets():
                    data = data.replace(secret, HIDDEN)
                return data
            case list():
                return [self.hide(item) for item in data]
            case dict():
                return {self.hide(name): self.hide(item) for name, item in data.items()}
        return data

    def reason(self, text: str) -> str:
        """`text` as it may stand in the ledger: scrubbed, one line, short."""
        return one_line(self.scrub(text[:4096]), MAX_REASON)

    def _secrets(self) -> list[str]:
        password = urlsplit(self.url).password if self.url else None
        found = (self.key, password or "", unquote(password or ""))
        return [secret for secret in found if len(secret) >= _SHORT]

    def connect(self) -> Provider:
        """A connection. Imports the SDK, which takes seconds."""
        return Gemini(self) if self.provider == "gemini" else OpenAi(self)


def endpoint(model: str | None, environment: Mapping[str, str]) -> Endpoint:
    """The endpoint that the environment and --llm-model name.

    Raises: ValueError if there is none, if it is not clear which, or if its SDK is not installed.
    """
    key, url = environment.get("GEMINI_API_KEY", "").strip(), environment.get("OPENAI_BASE_URL", "").strip()
    name, _, rest = (model or "").partition(":")
    named = name if name in ("gemini", "openai") else ""
    model = rest if named else model
    if not key and not url:
        raise UserError("--lanes llm: no model to ask: GEMINI_API_KEY, or OPENAI_BASE_URL (with OPENAI_API_KEY where "
                        "the server wants one), in the environment would do")
    if key and url and not named:
        raise UserError(f"--llm-model: {model or 'absent'}: both GEMINI_API_KEY and OPENAI_BASE_URL are set; "
                        "gemini:MODEL or openai:MODEL says which")
    if named and not {"gemini": key, "openai": url}[named]:
        wanted = {"gemini": "GEMINI_API_KEY", "openai": "OPENAI_BASE_URL"}[named]
        raise UserError(f"--llm-model: {named}:{model}: {wanted} in the environment would do")
    if named == "gemini" or not url:
        _needs("google.genai", "google-genai", "gemini")
        return Endpoint("gemini", model or GEMINI_MODEL, key, environment.get("GOOGLE_GEMINI_BASE_URL"))
    if not model:
        raise UserError("--llm-model: absent: the name of a model that OPENAI_BASE_URL serves would do")
    _needs("openai", "openai", "openai")
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError("OPENAI_BASE_URL: no web address; http://HOST:PORT/v1 would do")
    return Endpoint("openai", model, environment.get("OPENAI_API_KEY", "").strip(), url)


def _needs(module: str, package: str, extra: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # not even the package it would be in
        found = None
    if found is None:
        raise UserError(f'--lanes llm: {package} is not installed; pip install "jaxnano[{extra}]" would do')


def _count(value: Any) -> int:
    """A number of tokens as a server says it; 0 for anything else."""
    return value if isinstance(value, int) and 0 <= value < 1 << 40 else 0


def _answer(text: Any, tokens_in: int, tokens_out: int, stopped: Any) -> Answer:
    """The answer, or the fault that an empty one is."""
    answer = Answer(text if isinstance(text, str) else "", tokens_in, tokens_out)
    if not answer.text.strip():
        raise Fault("empty", f"an answer without text; it stopped for {str(stopped)[:80]}", answer=answer)
    return answer


class Gemini:
    """Google's Gemini API through google-genai."""

    def __init__(self, endpoint: Endpoint):
        from google import genai
        from google.genai import types

        from research.outside.llm import wire

        self._wire, self._types, self._model, self._http = wire, types, endpoint.model, wire.client()
        options = types.HttpOptions(base_url=endpoint.url, httpx_client=self._http,
                                    retry_options=types.HttpRetryOptions(attempts=1))
        self._client = genai.Client(vertexai=False, api_key=endpoint.key, http_options=options)

    def complete(self, system: str, user: str, schema: Mapping[str, Any], max_out: int, timeout_s: float) -> Answer:
        """See Provider. Thinking is paid for as output, and counted so."""
        config = self._types.GenerateContentConfig(
            system_instruction=system, response_mime_type="application/json", response_json_schema=dict(schema),
            max_output_tokens=max_out, http_options=self._types.HttpOptions(timeout=max(1, round(1000 * timeout_s))))
        try:
            found = self._client.models.generate_content(model=self._model, contents=user, config=config)
        except Exception as error:
            raise self._wire.fault(error) from None
        usage = found.usage_metadata
        used = lambda *names: sum(_count(getattr(usage, name, 0)) for name in names)  # noqa: E731
        first = found.candidates[0] if found.candidates else None
        parts = (first.content.parts or []) if first and first.content else []
        blocked = getattr(found.prompt_feedback, "block_reason", None)
        return _answer("".join(part.text for part in parts if part.text and not part.thought),
                       used("prompt_token_count", "tool_use_prompt_token_count"),
                       used("candidates_token_count", "thoughts_token_count"),
                       blocked or getattr(first, "finish_reason", "no candidate"))

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


class OpenAi:
    """Any server of chat completions through openai: vLLM, llama.cpp, Ollama, hosted services."""

    def __init__(self, endpoint: Endpoint):
        import openai

        from research.outside.llm import wire

        self._wire, self._model, self._http = wire, endpoint.model, wire.client()
        self._client = openai.OpenAI(api_key=endpoint.key or "none", base_url=endpoint.url, max_retries=0,
                                     http_client=self._http)
        host = urlsplit(endpoint.url or "").hostname or ""
        self._limit = "max_completion_tokens" if host.endswith("openai.com") else "max_tokens"
        self._formats = ["json_schema", "schema", "json_object", "text"]  # the first is tried; a server may not know it

    def complete(self, system: str, user: str, schema: Mapping[str, Any], max_out: int, timeout_s: float) -> Answer:
        """See Provider. A server that refuses a format of answers is asked for a plainer one from then on."""
        messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        forms = {"json_schema": {"type": "json_schema", "json_schema": {"name": "proposals", "strict": True,
                                                                        "schema": dict(schema)}},
                 "schema": {"type": "json_object", "schema": dict(schema)},  # as llama-cpp-python has it
                 "json_object": {"type": "json_object"}}
        form = forms.get(self._formats[0])
        body: dict[str, Any] = {self._limit: max_out} | ({"response_format": form} if form else {})
        try:
            found: Any = self._client.chat.completions.create(model=self._model, messages=messages, timeout=timeout_s,
                                                              extra_body=body)
        except Exception as error:
            fault = self._wire.fault(error)
            about_format = re.search("response_format|json_schema|json_object|schema", fault.reason.lower())
            if fault.status in (400, 422, 500) and len(self._formats) > 1 and about_format:
                del self._formats[0]
            raise fault from None
        usage = getattr(found, "usage", None)
        used = [_count(getattr(usage, name, 0)) for name in ("prompt_tokens", "completion_tokens")]
        try:
            choice = found.choices[0]
            text, stopped = choice.message.content, choice.message.refusal or choice.finish_reason
        except (AttributeError, LookupError, TypeError):
            raise Fault("garbage", "an answer without choices", answer=Answer("", used[0], used[1])) from None
        return _answer(text, used[0], used[1], stopped)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()
