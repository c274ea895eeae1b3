"""What becomes of samples that DALI doesn't decode: Pillow, or a status with the reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from dali_aesthetic.decode.pillow import TooManyPixels, decode_reference
from dali_aesthetic.decode.probe import Limits
from dali_aesthetic.types import Buffer, ImageHeader, Route, Status


@dataclass(frozen=True, slots=True)
class Rescued:
    """A header as decoding left it, and the pixels (uint8 [S, S, 3]) where there are any."""

    header: ImageHeader
    pixels_SSC: npt.NDArray[np.uint8] | None


def rescue(
    image: Buffer, header: ImageHeader, image_size: int, limits: Limits, apply_exif: bool = False
) -> Rescued:
    """Decode by Pillow. Never raises for what the bytes are: the failure becomes the header's status."""
    try:
        decoded = decode_reference(image, image_size, limits, format=header.format, apply_exif=apply_exif)
    except TooManyPixels as error:
        return _failed(header, Status.TOO_LARGE, str(error))
    except UnidentifiedImageError:
        return _failed(header, Status.UNDECODABLE, f"{header.format}: Pillow finds no image in these bytes")
    except MemoryError as error:
        return _failed(header, Status.TOO_LARGE, f"{header.format}: out of memory ({error})")
    except Exception as error:  # Pillow's plugins raise nearly every type for damaged data
        status = Status.TRUNCATED if "truncated" in str(error).lower() else Status.UNDECODABLE
        return _failed(header, status, f"{header.format}: {type(error).__name__}: {error}")
    found = header._replace(width=decoded.width, height=decoded.height, route=Route.PILLOW)
    return Rescued(found, decoded.pixels_SSC)


def _failed(header: ImageHeader, status: Status, message: str) -> Rescued:
    return Rescued(header._replace(route=Route.NOBODY, status=status, message=message[:500]), None)
