"""The operations as functions, under the names of torch.nn.functional."""

from ..ops.activation import gelu, leaky_relu, relu, sigmoid, silu
from ..ops.attention import scaled_dot_product_attention
from ..ops.conv import conv2d
from ..ops.dropout import dropout
from ..ops.embedding import embedding
from ..ops.loss import cross_entropy, mse_loss
from ..ops.matmul import linear
from ..ops.norm import layer_norm
from ..ops.pool import max_pool2d
from ..ops.softmax import log_softmax, softmax
from ..ops.unary import tanh

__all__ = ["conv2d", "cross_entropy", "dropout", "embedding", "gelu", "layer_norm", "leaky_relu",
           "linear", "log_softmax", "max_pool2d", "mse_loss", "relu",
           "scaled_dot_product_attention", "sigmoid", "silu", "softmax", "tanh"]
