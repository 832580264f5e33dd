"""The explicit ingress: an HTTP proxy and SOCKS5 on addresses of the host, for clients that log in.

Such a client can go around the gate, so its flows are `cooperative`. Whatever it asks for takes the same way
as what is captured: `passage`. What is here speaks to the client before that, and never to a destination.

    logins        who may log in, and how often somebody may fail
    requests      a request's head, judged for its form (pure)
    bodies        where a body ends, strictly (pure)
    responses     a response's head, made the client's (pure)
    exchange      one request and its response, as two channels that the relay carries between
    web           the conversation with a client of the HTTP proxy
    socks         the conversation with a client of SOCKS5 (RFC 1928, RFC 1929)
    headers       the header of a datagram of SOCKS5 (pure)
    associations  the datagrams of clients of SOCKS5, a flow for each destination
    listener      one listening socket: accepts, bounds, hands over
"""
