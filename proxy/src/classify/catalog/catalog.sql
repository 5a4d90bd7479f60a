-- What the classifier must know of one database. Every column is text; the result needs no order.
--   kind  name                             detail
--   x     'server_version_num'             its value
--   f     function                         worst volatility of its overloads: i, s or v
--   o     operator behind which            a volatile function
--   t     type whose explicit cast or      a volatile function
--         domain check calls
--   c     type whose implicit cast (or     a volatile function
--         cast to a built-in type) calls
--   a     function of a row, which may be  its volatility, always v
--         called as an attribute
--   n     sequence or unlogged relation    its relkind
--   r     view or table with row policies  a function that it calls and that is not immutable
--   e     view, table with row policies    a relation in it that may matter
--         or table with children
-- `system` says whether the function called (f, a: the function itself) is PostgreSQL's own.
-- Dependencies on built-in functions are not recorded in pg_depend, so rules and policies are read themselves.
WITH RECURSIVE routine AS (
    SELECT p.oid, p.proname, p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AS system,
        p.pronargs, p.pronargdefaults, p.proargtypes,
        -- An aggregate is as volatile as the functions that it is made of.
        GREATEST(p.provolatile::pg_catalog.text, (
            SELECT pg_catalog.max(part.provolatile::pg_catalog.text)
            FROM pg_catalog.pg_aggregate a
            JOIN pg_catalog.pg_proc part ON part.oid IN (a.aggtransfn, a.aggfinalfn, a.aggmtransfn,
                a.aggminvtransfn, a.aggmfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn)
            WHERE a.aggfnoid = p.oid
        )) AS volatility
    FROM pg_catalog.pg_proc p
), tree AS (
    SELECT c.relname AS name, r.ev_action::pg_catalog.text AS node
    FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
    WHERE r.ev_type = '1' AND c.relkind = 'v'
    UNION ALL
    SELECT c.relname, p.polqual::pg_catalog.text
    FROM pg_catalog.pg_policy p
    JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
    WHERE p.polcmd IN ('r', '*') AND p.polqual IS NOT NULL
), unlogged AS (
    -- Unlogged relations and what they are partitions or children of.
    SELECT c.oid, c.relname, NULL::pg_catalog.name AS child
    FROM pg_catalog.pg_class c
    WHERE c.relpersistence = 'u' AND c.relkind IN ('r', 'p', 'm')
    UNION
    SELECT parent.oid, parent.relname, u.relname
    FROM unlogged u
    JOIN pg_catalog.pg_inherits i ON i.inhrelid = u.oid
    JOIN pg_catalog.pg_class parent ON parent.oid = i.inhparent
), reference AS (
    SELECT DISTINCT t.name, m.field[1] = 'relid' AS to_relation, m.field[2]::pg_catalog.oid AS oid
    FROM tree t
    CROSS JOIN LATERAL pg_catalog.regexp_matches(
        t.node, ':(relid|funcid|opfuncid|aggfnoid|winfnoid|tsmhandler) ([1-9][0-9]*)', 'g') AS m(field)
)
SELECT 'x' AS kind, 'server_version_num' AS name,
    pg_catalog.current_setting('server_version_num') AS detail, 't' AS system
UNION ALL
SELECT 'f', proname::pg_catalog.text, pg_catalog.max(volatility), CASE WHEN system THEN 't' ELSE 'f' END
FROM routine GROUP BY proname, system
UNION ALL
SELECT 'o', o.oprname::pg_catalog.text, p.proname::pg_catalog.text, CASE WHEN p.system THEN 't' ELSE 'f' END
FROM pg_catalog.pg_operator o JOIN routine p ON p.oid = o.oprcode
WHERE p.volatility = 'v'
UNION ALL
SELECT CASE WHEN c.castcontext = 'i' OR t.typnamespace = 'pg_catalog'::pg_catalog.regnamespace THEN 'c' ELSE 't' END,
    t.typname::pg_catalog.text, p.proname::pg_catalog.text, CASE WHEN p.system THEN 't' ELSE 'f' END
FROM pg_catalog.pg_cast c
JOIN pg_catalog.pg_type t ON t.oid = c.casttarget
JOIN routine p ON p.oid = c.castfunc
WHERE p.volatility = 'v'
UNION ALL
SELECT 't', t.typname::pg_catalog.text, p.proname::pg_catalog.text, CASE WHEN p.system THEN 't' ELSE 'f' END
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_type t ON t.oid = k.contypid
CROSS JOIN LATERAL pg_catalog.regexp_matches(
    k.conbin::pg_catalog.text, ':(?:funcid|opfuncid) ([1-9][0-9]*)', 'g') AS m(field)
JOIN routine p ON p.oid = m.field[1]::pg_catalog.oid
WHERE p.volatility = 'v'
UNION ALL
SELECT DISTINCT 'a', p.proname::pg_catalog.text, 'v', CASE WHEN p.system THEN 't' ELSE 'f' END
FROM routine p
JOIN pg_catalog.pg_type t ON t.oid = p.proargtypes[0]
WHERE p.volatility = 'v' AND p.pronargs - p.pronargdefaults <= 1
    AND (t.typtype = 'c' OR t.typname IN ('record', 'any', 'anyelement', 'anynonarray', 'anycompatible', 'anycompatiblenonarray'))
UNION ALL
SELECT 'n', c.relname::pg_catalog.text, c.relkind::pg_catalog.text, 'f'
FROM pg_catalog.pg_class c
WHERE c.relkind = 'S' OR (c.relpersistence = 'u' AND c.relkind IN ('r', 'm'))
UNION ALL
SELECT DISTINCT 'r', r.name::pg_catalog.text, p.proname::pg_catalog.text, CASE WHEN p.system THEN 't' ELSE 'f' END
FROM reference r JOIN routine p ON p.oid = r.oid
WHERE NOT r.to_relation AND (p.volatility <> 'i' OR p.proname LIKE 'pg\_%')
UNION ALL
SELECT DISTINCT 'e', r.name::pg_catalog.text, c.relname::pg_catalog.text, 'f'
FROM reference r JOIN pg_catalog.pg_class c ON c.oid = r.oid
WHERE r.to_relation AND c.relname <> r.name
    AND (c.relkind IN ('v', 'S') OR c.relrowsecurity OR c.oid IN (SELECT oid FROM unlogged))
UNION ALL
SELECT DISTINCT 'e', relname::pg_catalog.text, child::pg_catalog.text, 'f'
FROM unlogged WHERE child IS NOT NULL
