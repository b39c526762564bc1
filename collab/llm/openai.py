"""Any OpenAI-compatible server: vLLM, llama.cpp, Ollama, the hosted ones, or `collab.llm.serve`.

The protocol and what can be wrong with a reply are here; bytes, sockets and deadlines are in
`transport`. The API key comes from where `llm.api_key_env` or `llm.api_key_file` says.
"""

from __future__ import annotations

import dataclasses
import difflib
import email.utils
import json
import math
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

from ml_collections import ConfigDict

from collab.llm import Completion, Message, errors
from collab.llm.bodies import error_words, listed_models, read_completion
from collab.llm.keys import api_key, hidden, key_place
from collab.llm.streams import StreamedReply
from collab.llm.structured import Structure, is_format_named
from collab.llm.transport import Answer, Transport
from collab.types import Knowledge

CHECK_S = 5.0  # for each exchange of the start-up check
PROBE_TOKENS = 16  # reply length of the start-up probe of a server that lists no models
_WORD = re.compile(r"[\w.-]{1,64}", re.ASCII)  # an error code that can't hold private text
_TOO_LONG = re.compile(r"context (?:length|size|window)|context_length|exceed_context", re.I)


class OpenAIBackend:
    """Chat completions over HTTP.

    The `model` field is `llm.model`; where that is "", it is the helper's name, so that one server
    can stand for a pool of helpers.
    """

    is_local = False

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        key: str,
        key_env: str,
        temperature: float,
        concurrency: int,
        helper_names: tuple[str, ...] = (),
        key_file: str = "",
        stream: bool = False,
        structured: str = "off",
    ) -> None:
        """key_env, key_file: where the key came from, or should; for messages.

        stream, structured: as `llm` has them. Raises: ValueError for what can't be sent.
        """
        self._base_url = self.where = _checked_url(base_url)
        self._model, self._temperature = model, temperature
        self.helper_names = (model,) if model else helper_names
        self._key_place = key_place(variable=key_env, path=key_file)
        self._key = _checked_key(key, self._key_place)
        self._stream, self._structure = stream, Structure(structured)
        self._transport = Transport(connections=concurrency, key=self._key)

    @classmethod
    def from_config(
        cls, llm: ConfigDict, *, knowledge: Knowledge | None, seed: int, mesh: object = None
    ) -> OpenAIBackend:
        """Settings from `config.llm`, the key from the environment; it may be absent."""
        return cls(
            base_url=llm.base_url,
            model=llm.model,
            key=api_key(llm),
            key_env=llm.api_key_env,
            key_file=llm.api_key_file,
            stream=llm.stream,
            structured=llm.structured,
            temperature=llm.temperature,
            concurrency=llm.concurrency * (2 if llm.hedge_after_s else 1),
            helper_names=tuple(llm.helpers),
        )

    def complete(
        self, messages: Sequence[Message], *, reply_tokens: int, deadline_s: float, helper: str
    ) -> Completion:
        """One chat completion. Raises: a `HelpError` for everything that isn't one."""
        until_s = time.monotonic() + deadline_s
        model = self._model or helper
        payload: dict[str, Any] = {
            "model": model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "max_tokens": reply_tokens,
            "temperature": self._temperature,
        }
        if self._stream:
            payload |= {"stream": True, "stream_options": {"include_usage": True}}
        at = self._structure.at
        while True:  # once, but where the server refuses a form
            form = self._structure.form(at)
            answer, streamed = self._asked(
                payload if form is None else payload | {"response_format": form},
                deadline_s=until_s - time.monotonic(),
            )
            if answer.status == 200:
                break
            failure = self._failure(answer, model)
            following = self._structure.next_after(
                at, failure, status=answer.status, body=answer.body
            )
            if following is None:
                raise failure
            at = following
        self._structure.note_reply(at)
        if answer.is_stream:
            completion = streamed.completion(is_late=answer.is_late)
        else:
            completion = read_completion(answer.body)
        # A server may say the key in its reply, which samples and replay files keep.
        return dataclasses.replace(
            completion, text=self._hidden(completion.text), is_structured=form is not None
        )

    def check(self) -> None:
        """Ask for the list of models, or a few tokens where there is none, and read what is wrong.

        Raises: HelperUnusable with the fix: server unreachable, key refused, model unknown.
        """
        try:
            answer = self._transport.exchange("GET", f"{self._base_url}/models", deadline_s=CHECK_S)
            if answer.status in (404, 405, 501):
                self._probe()
            elif answer.status != 200:
                raise self._failure(answer, self._model)
            else:
                self._check_listed(listed_models(answer.body))
        except (errors.ConnectionFailed, errors.TimedOut) as error:
            raise errors.HelperUnusable(
                f"llm.base_url={self._base_url!r}: no reply ({error}); start the server, e.g. "
                "python -m collab.llm.serve, or correct llm.base_url"
            ) from None
        except errors.HelpError as error:
            raise errors.HelperUnusable(f"llm.base_url={self._base_url!r}: {error}") from None

    def close(self) -> None:
        """Close the idle connections."""
        self._transport.close()

    def _asked(self, payload: dict[str, Any], *, deadline_s: float) -> tuple[Answer, StreamedReply]:
        """The answer, and what was collected where it is a stream."""
        streamed = StreamedReply(
            lambda status, body: self._failure(Answer(status, {}, body), payload["model"])
        )
        answer = self._transport.exchange(
            "POST",
            f"{self._base_url}/chat/completions",
            deadline_s=deadline_s,
            payload=json.dumps(payload).encode(),
            watch=streamed.feed if self._stream else None,
        )
        return answer, streamed

    def _probe(self) -> None:
        """A server without a list of models: whether each name is accepted."""
        for name in self.helper_names:
            try:
                self.complete(
                    [Message("user", "Say yes.")],
                    reply_tokens=PROBE_TOKENS,
                    deadline_s=CHECK_S,
                    helper=name,
                )
            except errors.Malformed:
                continue  # it replied: server, key and model are fine; so few tokens may not be

    def _check_listed(self, listed: list[str]) -> None:
        wanted = [name for name in self.helper_names if f"{name}:latest" not in listed]  # Ollama
        for name in wanted:
            if listed and name not in listed:
                near = difflib.get_close_matches(name, listed, n=3, cutoff=0.3) or listed[:8]
                key = "llm.model" if self._model else 'llm.model="" and the llm.helpers row'
                raise errors.HelperUnusable(
                    f"{key} {name!r}: no such model at {self._base_url}; "
                    f"set llm.model to one that is served: {self._hidden(', '.join(near))}"
                )

    def _hidden(self, text: str) -> str:
        """A server may quote the key back."""
        return hidden(text, self._key)

    def _failure(self, answer: Answer, model: str) -> errors.HelpError:
        """The typed error of a reply whose status is not 200. Quotes codes, never the text."""
        status, words = answer.status, error_words(answer.body)
        pause_s = retry_after_s(answer.headers, time.time())
        codes = [self._hidden(word) for word in words[:2] if _WORD.fullmatch(word)]
        said = " ".join([f"status {status}", *codes])
        if "content_filter" in words:
            return errors.ContentFiltered(said)
        if status == 402 or "insufficient_quota" in words:
            where = self._key_place
            return errors.QuotaSpent(f"{said}: the account of the key in {where} has no credit")
        if status in (401, 403):
            what = "refuses the key in" if self._key else "asks for a key; put it into"
            return errors.AuthFailed(f"{said}: the server {what} {self._key_place}")
        if status == 404:
            return errors.ModelNotFound(
                f"{said}: {self._base_url} knows no model {model!r}; correct llm.model, "
                "or llm.base_url (it usually ends in /v1)"
            )
        if status == 429:
            return errors.RateLimited(said, retry_after_s=pause_s)
        if status == 408:
            return errors.TimedOut(said, retry_after_s=pause_s)
        if status == 409 or status >= 500:
            return errors.ServerFailed(said, retry_after_s=pause_s)
        if status in (400, 413, 422) and any(_TOO_LONG.search(word) for word in words):
            return errors.ContextTooLong(f"{said}: the talk exceeds the context of {model!r}")
        if status < 300:
            return errors.Malformed(f"{said}: only 200 brings a reply")
        if status < 400:
            return errors.BadRequest(f"{said}: redirects are not followed; correct llm.base_url")
        if is_format_named(answer.body):
            return errors.BadRequest(f"{said}: it takes no response_format; set llm.structured=off")
        return errors.BadRequest(said)


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """The pause a server asks for, in seconds >= 0, or None where it names none that makes sense.

    headers: any case-insensitive mapping; now_s: Unix time, for the HTTP-date form where the reply
    has no Date, by a server's clock that may be an hour off. A date in the past is 0; negative,
    infinite and unreadable values are None.
    """
    milliseconds = _seconds(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "").strip()
    seconds = _seconds(value)
    if seconds is not None:
        return seconds
    until_s, server_s = _unix_s(value), _unix_s(headers.get("date", ""))
    if until_s is None:
        return None
    return max(0.0, until_s - (now_s if server_s is None else server_s))


def _unix_s(date: str) -> float | None:
    """An HTTP date as Unix time; one without a zone is UTC."""
    try:
        moment = email.utils.parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _seconds(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0.0 <= number < math.inf else None


def _checked_url(base_url: str) -> str:
    """Without a trailing slash. Raises: ValueError; one with a password in it is not quoted."""
    parts = urllib.parse.urlsplit(base_url)
    if parts.username or parts.password:
        raise ValueError(
            "llm.base_url must hold no user or password; use llm.api_key_env or llm.api_key_file"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"llm.base_url={base_url!r} must be a whole URL such as http://127.0.0.1:8000/v1"
        )
    return base_url.rstrip("/")


def _checked_key(key: str, place: str) -> str:
    """The key without blanks around it. Raises: ValueError that names its place only."""
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"the key in {place} must be one line of printable ASCII, no blanks")
    return key
