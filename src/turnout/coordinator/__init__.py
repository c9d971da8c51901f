"""The second door: engines that register themselves over ZeroMQ, as Megatron's coordinator would serve them."""
