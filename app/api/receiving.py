"""The raw body of a request, written while it arrives: a piece or two in memory, hashing and writing off the loop."""

import asyncio
from collections.abc import AsyncIterator

from app.api.file_threads import FileThreads
from app.artifacts.staging import PartWriter
from app.artifacts.uploads import PartPlace
from app.errors import FieldError, InvalidInputError

WRITE_BYTES = 1024 * 1024
PIECES_MAX = 1024
SILENCE_S = 60.0


async def receive(body: AsyncIterator[bytes], part: PartPlace, writer: PartWriter | None, threads: FileThreads) -> None:
    """Write the body, which must have the part's size; without a writer only count it.

    Raises:
        InvalidInputError: it is longer or shorter.
        TimeoutError: nothing came for SILENCE_S.
    """
    clock = asyncio.get_running_loop().time
    pieces, waiting, received = list[bytes](), 0, 0
    writing: asyncio.Future[None] | None = None
    try:
        async with asyncio.timeout(SILENCE_S) as silence:
            async for chunk in body:
                received += len(chunk)
                if received > part.size_bytes:
                    break
                if writer is None:
                    continue
                pieces.append(chunk)
                waiting += len(chunk)
                if waiting >= WRITE_BYTES or len(pieces) == PIECES_MAX:
                    if writing is not None:
                        await writing
                    writing = asyncio.ensure_future(threads.run(writer.write, pieces))
                    pieces, waiting = [], 0
                    silence.reschedule(clock() + SILENCE_S)
        if received != part.size_bytes:
            raise wrong_size(part, received)
    finally:
        if writing is not None:
            await writing
    if pieces and writer is not None:
        await threads.run(writer.write, pieces)


def wrong_size(part: PartPlace, size_bytes: int) -> InvalidInputError:
    """The refusal of a body that has not the part's size."""
    relation = "more" if size_bytes > part.size_bytes else f"{size_bytes}"
    detail = f"part {part.number} has {part.size_bytes} bytes, and the body has {relation}"
    return InvalidInputError(
        f"The part has the wrong size: {detail}.",
        errors=[FieldError("", detail)],
        hint="Send parts of part_bytes; only the last one is shorter. GET the upload to see what is there.",
    )
