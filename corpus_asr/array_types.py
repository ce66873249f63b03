"""Arrays and tensors annotated with type and shape, such as `Float[Tensor, "batch frame mel"]`.

Each name is `Annotated`: type checkers see the array's class, and shapes are neither checked nor
need a dependency. Tests replace the names by jaxtyping's classes before any other module of the
package is imported, and check every call (tests/support/shapes.py).
"""

from typing import Annotated as Bool
from typing import Annotated as Float
from typing import Annotated as Float16
from typing import Annotated as Float32
from typing import Annotated as Float64
from typing import Annotated as Int
from typing import Annotated as Int8
from typing import Annotated as Int16
from typing import Annotated as Int64
from typing import Annotated as Num
from typing import Annotated as UInt8
from typing import Annotated as UInt32

__all__ = (
    "Bool", "Float", "Float16", "Float32", "Float64", "Int", "Int8", "Int16", "Int64",
    "Num", "UInt8", "UInt32",
)  # fmt: skip
