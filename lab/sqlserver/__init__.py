"""A stand-in for SQL Server, for tests: TDS 7.4 before, PostgreSQL below, Change Tracking between.

    client ── wire ── server ── engine ── translate, ddl, admin ── store ── PostgreSQL
                                  └── flow (IF, WHILE, TRY)        └── tracking (triggers, CHANGETABLE)

* `wire`: packets, TLS inside of PRELOGIN, LOGIN7, the tokens of an answer. `values`: SQL Server's types on the wire.
* `server`: databases (each one of PostgreSQL's), logins, a pair of threads for each connection.
* `engine`: a session: transactions, variables, errors by number. `words` cuts batches into statements,
  `flow` runs them in order, `translate` makes PostgreSQL's SQL of those that read or change rows (sqlglot parses),
  `ddl` of those that make tables, `admin` does databases, users and grants.
* `tracking`: Change Tracking. `store.sql`, `catalog.sql`: what each database begins with.
* `hooks`: `EXEC lab.…`, what a test does to the server that no client could.

What it knows it does as the documentation says; what it does not know it refuses (error 50000, "the stand-in does
not know"), never half obeyed. docs/development.md says what it cannot show.
"""
