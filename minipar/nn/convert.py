"""Conversion of modules to another data type or device: a part of `Module` (module.py)."""

from ..ops.cast import destination


class Conversions:
    """The methods of Module that change type and device of its parameters and buffers."""

    def to(self, *args, **kwargs):
        """Convert floating parameters and buffers, or move all: to(dtype), to("cuda"),
        to("cuda", dtype), to(tensor); returns self.

        What is not materialised stays so. Raises TypeError for a dtype that is not floating, and
        RuntimeError, before any change, for parameters in flat memory: make the optimizer and
        DistributedDataParallel afterwards.
        """
        dtype, device = destination(args, kwargs)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"a module is of a floating type, not {dtype}")
        parameters = list(self.parameters())
        for parameter in parameters:
            parameter.check_convertible(dtype, device)
        for parameter in parameters:
            parameter.convert(dtype, device)
        new = {id(b): b.to(device=device, dtype=dtype if b.dtype.is_floating_point else None)
               for b in self.buffers()}
        for module in self.modules():
            for key, buffer in module._buffers.items():
                if id(buffer) in new:
                    setattr(module, key, new[id(buffer)])
        return self

    def cpu(self):
        return self.to("cpu")

    def cuda(self, device=None):
        return self.to("cuda" if device is None else device)

    def half(self):
        return self.to("float16")

    def bfloat16(self):
        return self.to("bfloat16")

    def float(self):
        return self.to("float32")

    def double(self):
        return self.to("float64")
