"""The service without wires: values, rules, ports."""
