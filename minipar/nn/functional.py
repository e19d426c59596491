"""The operations as functions, under the names of torch.nn.functional."""

from ..ops.activation import gelu, leaky_relu, relu, sigmoid, silu
from ..ops.attention import scaled_dot_product_attention
from ..ops.avg_pool import adaptive_avg_pool2d, avg_pool1d, avg_pool2d
from ..ops.batch_norm import batch_norm
from ..ops.conv import conv1d, conv2d, conv_transpose2d
from ..ops.dropout import dropout
from ..ops.embedding import embedding
from ..ops.group_norm import group_norm
from ..ops.interpolate import interpolate
from ..ops.loss import (binary_cross_entropy_with_logits, cross_entropy, l1_loss, mse_loss,
                        nll_loss)
from ..ops.matmul import linear
from ..ops.norm import layer_norm, rms_norm
from ..ops.pool import max_pool1d, max_pool2d
from ..ops.rearrange import pad
from ..ops.softmax import log_softmax, softmax
from ..ops.unary import tanh

__all__ = ["adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d", "batch_norm",
           "binary_cross_entropy_with_logits", "conv1d", "conv2d", "conv_transpose2d",
           "cross_entropy", "dropout", "embedding", "gelu", "group_norm", "interpolate", "l1_loss",
           "layer_norm", "leaky_relu", "linear", "log_softmax", "max_pool1d", "max_pool2d",
           "mse_loss", "nll_loss", "pad", "relu", "rms_norm", "scaled_dot_product_attention",
           "sigmoid", "silu", "softmax", "tanh"]
