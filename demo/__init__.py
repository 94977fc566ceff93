"""A stand-in Kubernetes cluster for the demo, the tests and the benches; no part of the product."""
