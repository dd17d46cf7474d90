"""The smallest whole: a contract, a server, a client."""
