"""A small shop in FastAPI. Run ``gunicorn app:app`` in this folder, where ``gunicorn.conf.py`` has the rest.

Metrics are in ``metrics.db``; set ``PDC_SQLITE_PATH`` or ``PDC_REDIS_URL`` for another place.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

import pdc
from pdc_starlette import instrument

orders = pdc.Counter("shop_orders", "Orders that were placed.", ["item"])
items = APIRouter()
app = FastAPI()


@app.get("/")
async def index() -> Response:
    """Greet the customer."""
    return PlainTextResponse("A small shop. Try /items/tea, /report/5, /slow/100, /broken and /metrics.\n")


@items.get("/{name}")
async def item(name: str) -> dict[str, str | int]:
    """Show an item, which takes a moment."""
    if name == "nothing":
        raise HTTPException(404)
    await asyncio.sleep(random.uniform(0.001, 0.02))
    return {"name": name, "price": len(name)}


@items.post("/{name}/order", status_code=201)
async def order(name: str) -> dict[str, str]:
    """Order an item."""
    orders.labels(name).inc()
    return {"ordered": name}


@app.get("/report/{lines}")
async def report(lines: int) -> Response:
    """Stream a report, a line every 20 ms; it is timed to its end."""

    async def stream() -> AsyncIterator[str]:
        for number in range(lines):
            await asyncio.sleep(0.02)
            yield f"line {number}\n"

    return StreamingResponse(stream(), media_type="text/plain")


@app.get("/slow/{milliseconds}")
async def slow(milliseconds: int) -> Response:
    """Sleep that long."""
    await asyncio.sleep(milliseconds / 1000)
    return PlainTextResponse("done\n")


@app.get("/broken")
async def broken() -> Response:
    """Fail."""
    raise RuntimeError("this page is broken on purpose")


@app.middleware("http")
async def name_worker(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Name the process that answered."""
    response = await call_next(request)
    response.headers["X-Worker"] = str(os.getpid())
    return response


app.include_router(items, prefix="/items")
instrument(app)
