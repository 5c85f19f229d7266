"""The primitive: value, gradient and second-order products of many students at once; knows no method and no student."""
