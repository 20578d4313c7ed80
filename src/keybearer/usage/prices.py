"""Tokens to money: what an answer cost, in millionths of a US dollar. Pure.

Prices come with the package ``genai-prices``; what the operator says of a model (``own_prices``) counts before them.

Measured: loading the price list takes 0.1 to 0.7 s (1.6 MB of Python, compiled or not, and it brings pydantic) and 12 MB,
and one calculation by the package's own means 130 µs. So the list is loaded by ``load()``, which a server calls in a
thread before it serves, and each model's prices are worked out once, as integers. Without it nothing has a price: a
calculation never waits for the list, as it runs where every other call waits, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from threading import Lock
from typing import Any, Final

import msgspec

from keybearer.domain import MediaUsage, Usage

_AZURE: Final = "azure"
"""A name there is the account's own, whatever model it stands for: what counts is the model that says it answered."""
_ROUTER: Final = "huggingface"
"""It passes calls on; only a name that ends in ``:provider`` says to whom, and so at what price."""
_PROVIDERS: Final = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "xai": "x-ai",
    "openrouter": "openrouter",
    "meta": "meta",
    "huggingface": _ROUTER,
    "cohere": "cohere",
    "voyage": "voyageai",
    "groq": "groq",
    "mistral": "mistral",
    "together": "together",
    "deepseek": "deepseek",
    "azure": _AZURE,
    "bedrock": "aws",
}
"""Our names to the price list's. Custom providers are not in it: only the operator knows what they cost."""

_SCALE: Final = 10**18  # a dollar per million tokens is a micro-dollar per token; listed prices have up to 16 decimals of that
_MICRO: Final = 10**6
_MOST: Final = 10**12
"""Micro-dollars of one call: an answer that comes to more claims tokens that it never had, and what it cost is not known."""
_REMEMBERED: Final = 4_096

Steps = tuple[tuple[int, int], ...]
"""(input tokens above which it applies, price of one token in 10⁻¹⁸ micro-dollars), rising."""


class Rates(msgspec.Struct, frozen=True):
    """The prices of one model. ``None``: the list has no price of its own for this kind of token."""

    input: Steps | None
    output: Steps | None
    cached: Steps | None
    cache_write: Steps | None
    long_cache_write: Steps | None
    reasoning: Steps | None
    audio: Steps | None = None
    image: Steps | None = None
    audio_output: Steps | None = None
    most_given: Steps = ()
    """The dearest of what is given and ..."""
    most_made: Steps = ()
    """... of what is made."""


class _Unpriced(Exception):  # never leaves this module
    """The list has no price for this."""


def load() -> None:
    """Load the price list. Blocks for up to a second the first time, and does nothing after that; safe in any thread."""
    with _loading:
        if not _loaded:
            _loaded.append(_Book())


def cost_micro_usd(provider: str, model: str, usage: Usage, at: float) -> int | None:
    """What ``usage`` of ``model`` (as ``provider`` names it) cost at ``at`` (Unix time), in micro-dollars, rounded up.

    ``None``: unknown, because the provider, the model, its price or the number of tokens is, or the price list was not
    loaded. The operator's own price wins, then a cost that the provider itself stated. Never blocks.
    """
    if _own and (own := _own_rates(provider, model)) is not None:
        return None if usage.input_tokens is None else _at(own, usage, usage.input_tokens)
    if usage.cost_usd is not None:
        return _round_up(int(Decimal(repr(usage.cost_usd)) * _MICRO * _SCALE))
    listed = _PROVIDERS.get(provider)
    if listed is None or usage.input_tokens is None or not (usage.model or model) or not _loaded:
        return None
    try:
        rates = _loaded[0].rates(listed, model, usage.model, at)
    except _Unpriced:
        return None
    return None if rates is None else _at(rates, usage, usage.input_tokens)


def set_own(own: Mapping[str, Rates]) -> None:
    """From now on these prices count for what they name, ``provider/model`` or ``provider/*``, and no others that were set."""
    _own.clear()
    _own.update(own)


def rates_of(dollars: Mapping[str, Decimal]) -> Rates:
    """Prices that somebody states: dollars a million tokens, by kind as ``Rates`` names them; ``input`` must be there."""
    return _rates({(_GIVEN | _MADE)[kind]: price for kind, price in dollars.items()})


def _own_rates(provider: str, model: str) -> Rates | None:
    name = f"{provider}/{model.removeprefix('models/')}"
    return _own.get(name) or _own.get(f"{provider}/*")


def _at(rates: Rates, usage: Usage, given: int) -> int | None:
    try:
        cost = _round_up(_cost(rates, usage, given))
    except _Unpriced:
        return None
    return cost if cost <= _MOST else None


def context_window(provider: str, model: str) -> int | None:
    """How many tokens ``model`` takes and makes in one call at most; ``None``: not known. Never blocks."""
    listed = _PROVIDERS.get(provider)
    if listed is None or listed == _AZURE or not model or not _loaded:
        return None
    return _loaded[0].context_window(listed, model)


def most_micro_usd(provider: str, model: str, given: int, made: int, at: float) -> int | None:
    """What a call costs that is given and makes at most so many tokens, at the dearest rates, in micro-dollars, rounded up.

    ``at``: Unix time. ``None``: not known. Never blocks.
    """
    rates = _own_rates(provider, model) if _own else None
    if rates is None:
        listed = _PROVIDERS.get(provider)
        if listed is None or not model or not _loaded:
            return None
        try:
            rates = _loaded[0].rates(listed, model, None, at)
        except _Unpriced:
            return None
    if rates is None or (rates.output is None and made):
        return None
    return _round_up(_highest(rates.most_given, given) * given + _highest(rates.most_made, given) * made)


def _highest(ceiling: Steps, given: int) -> int:
    """The highest price that may apply for up to so many input tokens."""
    highest = 0
    for start, price in ceiling:
        if start <= given:
            highest = price
    return highest


def _round_up(scaled: int) -> int:
    """A cost is never shown as nothing, and sums never fall short."""
    return -(-scaled // _SCALE)


def _cost(rates: Rates, usage: Usage, given: int) -> int:
    """Scaled micro-dollars. Raises ``_Unpriced`` where tokens were used that have no price, or nobody knows how many."""
    cached = min(usage.cached_tokens or 0, given) if rates.cached else 0
    written = min(usage.cache_write_tokens or 0, given - cached) if rates.cache_write else 0
    total = _price(rates.input, given) * (given - cached - written)
    if isinstance(usage, MediaUsage):
        total += _surcharge(rates, usage, given, cached + written)
    if cached:
        total += _price(rates.cached, given) * cached
    if written:
        long = min(usage.long_cache_write_tokens or 0, written) if rates.long_cache_write else 0
        total += _price(rates.cache_write, given) * (written - long)
        total += _price(rates.long_cache_write, given) * long if long else 0
    if rates.output is None:
        if usage.output_tokens:
            raise _Unpriced
        return total
    if usage.output_tokens is None:
        raise _Unpriced
    reasoning = min(usage.reasoning_tokens or 0, usage.output_tokens) if rates.reasoning else 0
    total += _price(rates.output, given) * (usage.output_tokens - reasoning)
    return total + (_price(rates.reasoning, given) * reasoning if reasoning else 0)


def _surcharge(rates: Rates, usage: MediaUsage, given: int, kept: int) -> int:
    """What tokens of sound and images cost beyond the price of text. Raises ``_Unpriced`` where nobody knows.

    Images are charged as text where they have no price of their own; sound never is. Of what was read from or written to a cache
    (``kept``) no answer says which of it was sound or an image.
    """
    total = 0
    for tokens, steps in ((usage.audio_tokens, rates.audio), (usage.image_tokens, rates.image or rates.input)):
        if tokens:
            if steps is not rates.input and (kept or tokens > given):
                raise _Unpriced
            total += (_price(steps, given) - _price(rates.input, given)) * tokens
    made = usage.audio_output_tokens
    if made and usage.output_tokens is not None:
        if usage.reasoning_tokens or made > usage.output_tokens:
            raise _Unpriced
        total += (_price(rates.audio_output, given) - _price(rates.output, given)) * made
    return total


def _price(steps: Steps | None, given: int) -> int:
    """The price that applies for so many input tokens: above a step it applies to all of them."""
    if steps is None:
        raise _Unpriced
    price = steps[0][1]
    for start, stepped in steps[1:]:
        if given > start:
            price = stepped
    return price


class _Model:
    """A model that the list knows."""

    __slots__ = ("_choices", "_fixed", "_found", "window")

    def __init__(self, found: Any) -> None:
        self.window: int | None = found.context_window
        """How many tokens it takes and makes in one call at most."""
        self._found = found
        self._choices: dict[int, tuple[Any, Rates]] = {}
        self._fixed: Rates | None = None
        """Where they do not depend on the time, once they were asked for."""

    def rates(self, at: float) -> Rates:
        """Its prices at a time. Raises ``_Unpriced``."""
        if self._fixed is not None:
            return self._fixed
        prices = self._found.prices
        if not isinstance(prices, list):
            self._fixed = _rates(vars(prices))
            return self._fixed
        listed = self._found.get_prices(datetime.fromtimestamp(at, UTC))
        known = self._choices.get(id(listed))
        if known is None:
            known = self._choices[id(listed)] = (listed, _rates(vars(listed)))  # kept, so that its id stays its own
        return known[1]


class _Book:
    """The price list, with what was looked up in it."""

    __slots__ = ("_calls", "_models", "_snapshot")

    def __init__(self) -> None:
        # Imported by name, here: a server must be ready before this is.
        self._snapshot: Any = import_module("genai_prices.data_snapshot").get_snapshot()
        self._models: dict[tuple[str, str], _Model | None] = {}
        self._calls: dict[tuple[str, str, str | None], _Model | None] = {}

    def rates(self, provider: str, model: str, answered: str | None, at: float) -> Rates | None:
        """The prices of the model asked for, else of the one that answered (an alias may be unknown to the list)."""
        call = (provider, model, answered)
        try:
            found = self._calls[call]
        except KeyError:
            found = self._called(*call)
        return None if found is None else found.rates(at)

    def _called(self, provider: str, model: str, answered: str | None) -> _Model | None:
        found = None if provider == _AZURE else self._model(provider, model)
        found = found or (self._model(provider, answered) if answered else None)
        if len(self._calls) >= _REMEMBERED:
            self._calls.clear()
        self._calls[provider, model, answered] = found
        return found

    def context_window(self, provider: str, model: str) -> int | None:
        """As the list knows it."""
        found = self._model(provider, model)
        return None if found is None else found.window

    def _model(self, provider: str, model: str) -> _Model | None:
        key = (provider, model)
        if key not in self._models:
            if len(self._models) >= _REMEMBERED:
                self._models.clear()
            model = model.removeprefix("models/")
            if provider == _ROUTER:
                model, _, other = model.rpartition(":")
                provider = f"{_ROUTER}_{other}"
            try:
                found = self._snapshot.find_provider_model(model, None, provider, None)[1]
            except LookupError:
                self._models[key] = None
            else:
                self._models[key] = None if found is None else _Model(found)
        return self._models[key]


_loaded: Final[list[_Book]] = []
"""The price list, once it is there."""
_loading: Final = Lock()
_own: Final[dict[str, Rates]] = {}
"""The operator's own prices, by ``provider/model`` or ``provider/*``."""


_GIVEN: Final = {
    "input": "input_mtok",
    "cached": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "long_cache_write": "cache_write_1h_mtok",
    "audio": "input_audio_mtok",
    "image": "input_image_mtok",
}
_MADE: Final = {"output": "output_mtok", "reasoning": "output_reasoning_mtok", "audio_output": "output_audio_mtok"}
"""Our names of prices to the list's."""
_BY_TIME: Final = "audio_hours"
"""Beside its tokens the model charges for the length of what it hears, which no answer states."""


def _rates(prices: Mapping[str, Any]) -> Rates:
    given = {name: _steps(prices.get(listed)) for name, listed in _GIVEN.items()}
    made = {name: _steps(prices.get(listed)) for name, listed in _MADE.items()}
    if given["input"] is None or prices.get(_BY_TIME) is not None:
        raise _Unpriced
    return Rates(**given, **made, most_given=_ceiling(given.values()), most_made=_ceiling(made.values()))


def _ceiling(kinds: Iterable[Steps | None]) -> Steps:
    """The highest of several prices at each step of any of them."""
    steps = [step for kind in kinds for step in kind or ()]
    starts = sorted({start for start, _ in steps})
    return tuple((start, max(price for begins, price in steps if begins <= start)) for start in starts)


def _steps(price: Any) -> Steps | None:
    if price is None:
        return None
    if isinstance(price, Decimal):
        return ((0, _scaled(price)),)
    return ((0, _scaled(price.base)), *((tier.start, _scaled(tier.price)) for tier in price.tiers))


def _scaled(price: Decimal) -> int:
    return int(price * _SCALE)
