"""The Certificate Management Protocol: RFC 9810, with RFC 4211 for requests and RFC 9481 for algorithms."""
