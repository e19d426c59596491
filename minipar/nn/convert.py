"""Conversion of modules to another data type: a part of `Module` (module.py)."""

from ..ops.cast import destination


class Conversions:
    """The methods of Module that change the type of its parameters and buffers."""

    def to(self, *args, **kwargs):
        """Convert floating parameters and buffers: to(dtype), to("cpu"), to(tensor); returns self.

        What is not materialised stays so. Raises TypeError for a dtype that is not floating, and
        RuntimeError, before any change, for parameters in flat memory: make the optimizer and
        DistributedDataParallel afterwards.
        """
        dtype = destination(args, kwargs)
        if dtype is None:
            return self
        if not dtype.is_floating_point:
            raise TypeError(f"a module is of a floating type, not {dtype}")
        parameters = list(self.parameters())
        for parameter in parameters:
            parameter.check_convertible(dtype)
        for parameter in parameters:
            parameter.convert(dtype)
        new = {id(b): b.to(dtype) for b in self.buffers() if b.dtype.is_floating_point}
        for module in self.modules():
            for key, buffer in module._buffers.items():
                if id(buffer) in new:
                    setattr(module, key, new[id(buffer)])
        return self

    def half(self):
        return self.to("float16")

    def bfloat16(self):
        return self.to("bfloat16")

    def float(self):
        return self.to("float32")

    def double(self):
        return self.to("float64")
