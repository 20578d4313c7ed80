"""The gateway: one request, from its first byte to its last receipt.

Dialect      the wire format that a client speaks: OpenAI's, Anthropic's or Gemini's
Operation    what is asked for: ``chat.completions``, ``messages``, ``generateContent`` …
Route        what method and path alone say of a request
Plan         what is to be sent where, decided from route, body and the caller's registry; no I/O
Course       what calls that look alike have in common: their plan, their lines, the key they use as long as it is at hand
Spelling     the bytes of a head that was read before: the same bytes mean the same again
Ring         the keys of one scope that may serve a call: priority groups whose members take turns
Health       how a key fares at its provider, as far as this process knows
Upstream     the provider's side of an exchange

``paths``     which paths are the gateway's, and what each means          ``body``     the few decisive keys of a JSON body
``endpoints`` the table of them: what each takes                         ``form``     the same of a form
``sharing``   what a key of several people may not do
``objects``   whose the files, batches … are that it made               ``keeping``  an answer that tells of a new one
``plan``      one request, decided                                      ``dialect``  answers of our own, in each dialect's shape
``egress``    where a key may be sent                                   ``upstream`` connections to providers
``connection``, ``pool``, ``resolve``  one connection, those of an origin, names to addresses
``response``  reading answers, without a socket                         ``outgoing`` writing requests, strictly
``scrubber``  masking a key in what a provider says
``asking``    one request of our own and its whole answer                ``tls``      how servers are verified
``credentials``  tokens and keys, cached
``protocol``  one client connection, taken out before the ASGI app     ``turns``    what stands in its queue
``request``, ``fields``  a request's head, read strictly                ``limits``   durations and sizes
``exchange``  one gateway request in six steps                          ``allowance`` what a token allows
``intake``    a request as it arrives                                   ``relay``    the answer's way back
``use``       one path from token to journal, waits included            ``ready``    a key made ready to leave, and for whom
``course``    where calls that look alike go, worked out once           ``counters`` budgets and limits, reserved and settled
``counts``    where limits are counted: ``own_counts`` in memory, ``shared_counts`` in ``valkey``
``credit``    what of the latter was drawn ahead                       ``lost``     what killed processes left there
``wishes``    what is asked of it in one question
``answer``    answers of our own, as bytes                              ``plane``    what all connections share
``fetch``    a secret's value for a program that needs it              ``handout``  that value, ready and cached; ``asked``, which one
``inside``   a gateway call without a socket                            ``chat``     one chat for all dialects
``refused``   keys a provider refused, tested and marked               ``client_address``  where a request comes from
``refusal``   what goes on record of a call that was refused
``health``    which keys rest, until when, and why                      ``ring``     whose turn it is, and who is next
``leftover``  the rest of an answer that nobody wants                  ``openrouter`` which models OpenRouter has
``steps``     when fast event streams are read on

Connection tests: ``checks`` is the way of all, ``prober`` says which test is whose, ``verdict`` what one says. ``probe`` asks a
provider; ``probe_postgresql``, ``probe_mysql`` (in ``mysql``'s protocol), ``probe_smtp`` and ``probe_webhook`` go where a secret itself
says (``connection_string``), at addresses that ``dial`` has checked.

What the deployment sends for itself: ``token_endpoint`` refreshes OAuth tokens, ``hooks`` posts reminders, signed as
``standard_webhook`` says, ``mailer`` sends mail, ``post`` brings checkpoints elsewhere.
"""
