"""What Triton's interpreter lacks beside newer NumPy."""

from triton.runtime import interpreter


def let_numbers_of_one_element_be_bounds_of_loops() -> None:
    """The interpreter of Triton 3.6 keeps numbers in arrays (1,), which newer NumPy does not take for integers."""
    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_mend
