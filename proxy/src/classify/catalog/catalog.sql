-- What the classifier must know of one database. Every column is text; the result needs no order.
--   kind  name                             detail
--   x     'server_version_num'             its value
--   b     'builtins'                       what tells PostgreSQL's own objects of one server from another's
--   f     function                         worst volatility of its overloads: i, s or v
--   o     operator behind which            a volatile function
--   t     type whose cast, input, output,  a volatile function
--         comparison or check calls
--   d     type or row made of a type of    that type
--         kind t, function that takes or gives it
--   c     type that may be used without    a volatile function
--         being named, whose cast calls
--   a     function of a row, which may be  its volatility, always v
--         called as an attribute
--   n     sequence, unlogged relation or   its relkind
--         foreign table
--   r     view or table with row policies  a function that it calls and that is not immutable
--   e     view, table with row policies    a relation in it that may matter
--         or table with children
--   s  function in SQL or PL/pgSQL that is   its source, line ends written as the character 30; empty where it is known
--      volatile, or known to leave nothing   to leave nothing
--   q  one that is stable or immutable       its source
--   u  function that is volatile and cannot  its language
--      be read
--   m  aggregate                             a function that it is made of
--   g  relation                              a function that runs unseen when it is written: of a trigger, a default,
--                                            a check, a rule, a policy or an index
--   l  relation that is written with         another: the tables of a view, partitions, those that a foreign key or a
--                                            rule reaches
--   v  event trigger                         its function
-- `system` says whether the function called (f, a: the function itself) is PostgreSQL's own.
--
-- $FIRST and $LAST bound the numbers of the objects told of: PostgreSQL's own are below FirstNormalObjectId, 16384
-- (src/include/access/transam.h), and need to be read only once.
-- Dependencies on built-in functions are not recorded in pg_depend, so rules and policies are read themselves.
WITH RECURSIVE aggregate AS (
    -- An aggregate is as volatile as the functions that it is made of.
    SELECT a.aggfnoid::pg_catalog.oid AS oid, pg_catalog.max(part.provolatile::pg_catalog.text) AS volatility
    FROM pg_catalog.pg_aggregate a
    CROSS JOIN LATERAL (VALUES (a.aggtransfn), (a.aggfinalfn), (a.aggmtransfn), (a.aggminvtransfn), (a.aggmfinalfn),
        (a.aggcombinefn), (a.aggserialfn), (a.aggdeserialfn)) AS p(oid)
    JOIN pg_catalog.pg_proc part ON part.oid = p.oid
    GROUP BY 1
), routine AS NOT MATERIALIZED (
    SELECT p.oid, p.proname, p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AS system,
        p.pronargs, p.pronargdefaults, p.proargtypes,
        GREATEST(p.provolatile::pg_catalog.text, a.volatility) AS volatility
    FROM pg_catalog.pg_proc p LEFT JOIN aggregate a ON a.oid = p.oid
), tree AS (
    SELECT c.relname AS name, r.ev_action::pg_catalog.text AS node
    FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
    WHERE r.ev_type = '1' AND c.relkind = 'v' AND r.oid BETWEEN $FIRST AND $LAST
    UNION ALL
    SELECT c.relname, p.polqual::pg_catalog.text
    FROM pg_catalog.pg_policy p
    JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
    WHERE p.polcmd IN ('r', '*') AND p.polqual IS NOT NULL AND p.oid BETWEEN $FIRST AND $LAST
), unreadable AS (
    -- Relations that standbys have no rows of, or rows of their own, and what they are partitions or children of.
    SELECT c.oid, c.relname, NULL::pg_catalog.name AS child
    FROM pg_catalog.pg_class c
    WHERE (c.relpersistence = 'u' AND c.relkind IN ('r', 'p', 'm')) OR c.relkind = 'f'
    UNION
    SELECT parent.oid, parent.relname, u.relname
    FROM unreadable u
    JOIN pg_catalog.pg_inherits i ON i.inhrelid = u.oid
    JOIN pg_catalog.pg_class parent ON parent.oid = i.inhparent
), reference AS MATERIALIZED (
    SELECT DISTINCT t.name, m.field[1] = 'relid' AS to_relation, m.field[2]::pg_catalog.oid AS oid
    FROM tree t
    CROSS JOIN LATERAL pg_catalog.regexp_matches(
        t.node, ':(relid|funcid|opfuncid|aggfnoid|winfnoid|tsmhandler) ([1-9][0-9]*)', 'g') AS m(field)
), unseen AS (
    -- Expressions that run when a relation is written.
    SELECT d.adrelid AS relation, d.adbin::pg_catalog.text AS node
    FROM pg_catalog.pg_attrdef d WHERE d.oid BETWEEN $FIRST AND $LAST
    UNION ALL
    SELECT k.conrelid, k.conbin::pg_catalog.text
    FROM pg_catalog.pg_constraint k WHERE k.conrelid <> 0 AND k.conbin IS NOT NULL AND k.oid BETWEEN $FIRST AND $LAST
    UNION ALL
    SELECT r.ev_class, pg_catalog.concat(r.ev_action::pg_catalog.text, r.ev_qual::pg_catalog.text)
    FROM pg_catalog.pg_rewrite r WHERE r.ev_type <> '1' AND r.oid BETWEEN $FIRST AND $LAST
    UNION ALL
    SELECT p.polrelid, pg_catalog.concat(p.polqual::pg_catalog.text, p.polwithcheck::pg_catalog.text)
    FROM pg_catalog.pg_policy p WHERE p.oid BETWEEN $FIRST AND $LAST
    UNION ALL
    SELECT i.indrelid, pg_catalog.concat(i.indexprs::pg_catalog.text, i.indpred::pg_catalog.text)
    FROM pg_catalog.pg_index i
    WHERE (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL) AND i.indexrelid BETWEEN $FIRST AND $LAST
    UNION ALL
    SELECT t.tgrelid, t.tgqual::pg_catalog.text
    FROM pg_catalog.pg_trigger t WHERE t.tgqual IS NOT NULL AND t.oid BETWEEN $FIRST AND $LAST
), unseen_reference AS MATERIALIZED (
    SELECT DISTINCT u.relation, m.field[1] = 'relid' AS to_relation, m.field[2]::pg_catalog.oid AS oid
    FROM unseen u
    CROSS JOIN LATERAL pg_catalog.regexp_matches(
        u.node, ':(relid|funcid|opfuncid|aggfnoid|winfnoid) ([1-9][0-9]*)', 'g') AS m(field)
), hiding AS (
    -- Types that a function comes with, and how it gets to run: `named` when the type is named, `made` when a type made
    -- of it is named as well, `used` when anything takes or gives a value of it, `any` when nobody can tell.
    SELECT CASE WHEN c.casttarget >= 16384 THEN c.casttarget WHEN c.castsource >= 16384 THEN c.castsource ELSE c.casttarget END
            AS oid, c.castfunc::pg_catalog.oid AS function,
        CASE WHEN c.casttarget >= 16384 AND c.castcontext <> 'i' THEN 'named'
            WHEN c.casttarget >= 16384 OR c.castsource >= 16384 THEN 'used' ELSE 'any' END AS runs
    FROM pg_catalog.pg_cast c
    WHERE c.oid BETWEEN $FIRST AND $LAST AND c.castfunc <> 0
    UNION ALL
    SELECT t.oid, f.oid::pg_catalog.oid, CASE WHEN t.oid < 16384 THEN 'any' ELSE f.runs END
    FROM pg_catalog.pg_type t
    CROSS JOIN LATERAL (VALUES (t.typinput, 'made'), (t.typmodin, 'made'), (t.typoutput, 'used'), (t.typsend, 'used')) AS f(oid, runs)
    WHERE t.oid BETWEEN $FIRST AND $LAST AND t.typtype <> 'p'
    UNION ALL
    SELECT k.contypid, m.field[1]::pg_catalog.oid, 'made'
    FROM pg_catalog.pg_constraint k
    CROSS JOIN LATERAL pg_catalog.regexp_matches(
        k.conbin::pg_catalog.text, ':(?:funcid|opfuncid) ([1-9][0-9]*)', 'g') AS m(field)
    WHERE k.contypid <> 0 AND k.oid BETWEEN $FIRST AND $LAST
    UNION ALL
    SELECT a.amproclefttype, a.amproc::pg_catalog.oid, CASE WHEN a.amproclefttype < 16384 THEN 'any' ELSE 'used' END
    FROM pg_catalog.pg_amproc a
    WHERE a.oid BETWEEN $FIRST AND $LAST
), volatile_type AS MATERIALIZED (
    SELECT DISTINCT t.oid, t.typname, h.runs, p.proname, p.system
    FROM hiding h
    JOIN pg_catalog.pg_type t ON t.oid = h.oid
    JOIN routine p ON p.oid = h.function
    WHERE p.volatility = 'v'
), contains AS NOT MATERIALIZED (
    SELECT t.typbasetype AS inner_type, t.oid AS outer_type FROM pg_catalog.pg_type t WHERE t.typbasetype >= 16384
    UNION ALL
    SELECT t.typelem, t.oid FROM pg_catalog.pg_type t WHERE t.typelem >= 16384
    UNION ALL
    SELECT r.rngsubtype, r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngsubtype >= 16384
    UNION ALL
    SELECT a.atttypid, c.reltype
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    WHERE a.atttypid >= 16384 AND a.attnum > 0 AND c.reltype <> 0
), made_of AS (
    -- Domains, arrays, ranges and rows of such types.
    SELECT v.oid, v.typname, NULL::pg_catalog.name AS part, v.runs, v.proname, v.system
    FROM volatile_type v WHERE v.runs IN ('made', 'used')
    UNION
    SELECT t.oid, t.typname, m.typname, m.runs, m.proname, m.system
    FROM made_of m
    JOIN contains c ON c.inner_type = m.oid
    JOIN pg_catalog.pg_type t ON t.oid = c.outer_type
)
SELECT 'x' AS kind, 'server_version_num' AS name,
    pg_catalog.current_setting('server_version_num') AS detail, 't' AS system
UNION ALL
SELECT 'b', 'builtins', pg_catalog.current_setting('server_version_num') || ' ' || pg_catalog.count(*)::pg_catalog.text
    || ' ' || pg_catalog.sum(p.oid::pg_catalog.int8 * p.xmin::pg_catalog.text::pg_catalog.int8)::pg_catalog.text, 't'
FROM pg_catalog.pg_proc p WHERE p.oid < 16384
UNION ALL
SELECT 'f', proname::pg_catalog.text, pg_catalog.max(volatility), CASE WHEN system THEN 't' ELSE 'f' END
FROM routine WHERE oid BETWEEN $FIRST AND $LAST GROUP BY proname, system
UNION ALL
SELECT 'o', o.oprname::pg_catalog.text, p.proname::pg_catalog.text, CASE WHEN p.system THEN 't' ELSE 'f' END
FROM pg_catalog.pg_operator o JOIN routine p ON p.oid = o.oprcode
WHERE p.volatility = 'v' AND o.oid BETWEEN $FIRST AND $LAST
UNION ALL
SELECT CASE WHEN runs = 'any' THEN 'c' ELSE 't' END, typname::pg_catalog.text, proname::pg_catalog.text,
    CASE WHEN system THEN 't' ELSE 'f' END
FROM volatile_type
UNION ALL
SELECT DISTINCT 'd', typname::pg_catalog.text, part::pg_catalog.text, 'f' FROM made_of WHERE part IS NOT NULL
UNION ALL
SELECT DISTINCT 'd', p.proname::pg_catalog.text, m.typname::pg_catalog.text, 'f'
FROM made_of m
JOIN pg_catalog.pg_proc p ON m.oid = p.prorettype OR m.oid = ANY (p.proargtypes) OR m.oid = ANY (p.proallargtypes)
WHERE m.runs = 'used'
UNION ALL
SELECT DISTINCT 'o', o.oprname::pg_catalog.text, m.proname::pg_catalog.text, CASE WHEN m.system THEN 't' ELSE 'f' END
FROM made_of m
JOIN pg_catalog.pg_operator o ON m.oid IN (o.oprleft, o.oprright, o.oprresult)
WHERE m.runs = 'used'
UNION ALL
SELECT DISTINCT 'a', p.proname::pg_catalog.text, 'v', CASE WHEN p.system THEN 't' ELSE 'f' END
FROM routine p
JOIN pg_catalog.pg_type t ON t.oid = p.proargtypes[0]
WHERE p.volatility = 'v' AND p.pronargs - p.pronargdefaults <= 1 AND p.oid BETWEEN $FIRST AND $LAST
    AND (t.typtype = 'c' OR t.typname IN ('record', 'any', 'anyelement', 'anynonarray', 'anycompatible', 'anycompatiblenonarray'))
UNION ALL
SELECT 'n', c.relname::pg_catalog.text, c.relkind::pg_catalog.text, 'f'
FROM pg_catalog.pg_class c
WHERE c.oid BETWEEN $FIRST AND $LAST
    AND (c.relkind IN ('S', 'f') OR (c.relpersistence = 'u' AND c.relkind IN ('r', 'm')))
UNION ALL
SELECT DISTINCT 'r', r.name::pg_catalog.text, p.proname::pg_catalog.text, CASE WHEN p.system THEN 't' ELSE 'f' END
FROM reference r JOIN routine p ON p.oid = r.oid
WHERE NOT r.to_relation AND (p.volatility <> 'i' OR p.proname LIKE 'pg\_%')
UNION ALL
SELECT DISTINCT 'e', r.name::pg_catalog.text, c.relname::pg_catalog.text, 'f'
FROM reference r JOIN pg_catalog.pg_class c ON c.oid = r.oid
WHERE r.to_relation AND c.relname <> r.name
    AND (c.relkind IN ('v', 'S') OR c.relrowsecurity OR c.oid IN (SELECT oid FROM unreadable))
UNION ALL
SELECT DISTINCT 'e', relname::pg_catalog.text, child::pg_catalog.text, 'f'
FROM unreadable WHERE child IS NOT NULL AND oid BETWEEN $FIRST AND $LAST
UNION ALL
SELECT CASE WHEN p.provolatile = 'v' THEN 's' ELSE 'q' END, p.proname::pg_catalog.text,
    CASE WHEN l.lanname = 'c' THEN '' WHEN pg_catalog.length(p.prosrc) > 65536 THEN 'EXECUTE'
        ELSE pg_catalog.translate(CASE WHEN p.prosrc = '' THEN pg_catalog.pg_get_functiondef(p.oid) ELSE p.prosrc END,
            E'\n\r\t', E'\x1e\x1e ') END, 'f'
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE p.oid BETWEEN GREATEST($FIRST, 16384) AND $LAST AND p.prokind IN ('f', 'p')
    AND (l.lanname IN ('sql', 'plpgsql') OR (l.lanname = 'c' AND p.provolatile = 'v'
        AND p.probin ~ '(^|/)(uuid-ossp|pgcrypto|moddatetime|insert_username|autoinc|refint|lo|tcn)$'))
UNION ALL
SELECT DISTINCT 'u', p.proname::pg_catalog.text, l.lanname::pg_catalog.text, 'f'
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE p.oid BETWEEN GREATEST($FIRST, 16384) AND $LAST AND p.prokind <> 'a' AND p.provolatile = 'v'
    AND l.lanname NOT IN ('sql', 'plpgsql') AND NOT (l.lanname = 'c'
        AND p.probin ~ '(^|/)(uuid-ossp|pgcrypto|moddatetime|insert_username|autoinc|refint|lo|tcn)$')
UNION ALL
SELECT DISTINCT 'm', p.proname::pg_catalog.text, part.proname::pg_catalog.text, 'f'
FROM pg_catalog.pg_aggregate a
JOIN pg_catalog.pg_proc p ON p.oid = a.aggfnoid
CROSS JOIN LATERAL (VALUES (a.aggtransfn), (a.aggfinalfn), (a.aggmtransfn), (a.aggminvtransfn), (a.aggmfinalfn),
    (a.aggcombinefn), (a.aggserialfn), (a.aggdeserialfn)) AS f(oid)
JOIN pg_catalog.pg_proc part ON part.oid = f.oid
WHERE p.oid BETWEEN GREATEST($FIRST, 16384) AND $LAST
UNION ALL
SELECT DISTINCT 'g', c.relname::pg_catalog.text, p.proname::pg_catalog.text, CASE WHEN p.system THEN 't' ELSE 'f' END
FROM unseen_reference u
JOIN pg_catalog.pg_class c ON c.oid = u.relation
JOIN routine p ON p.oid = u.oid
WHERE NOT u.to_relation AND (p.oid >= 16384
    OR p.proname ~ '^(set_config|pg_(try_)?advisory_.*|query_to_xml.*|pg_replication_origin_session_setup)$')
UNION ALL
SELECT DISTINCT 'g', c.relname::pg_catalog.text, p.proname::pg_catalog.text, 'f'
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND p.oid >= 16384 AND t.oid BETWEEN $FIRST AND $LAST
UNION ALL
SELECT DISTINCT 'l', r.name::pg_catalog.text, c.relname::pg_catalog.text, 'f'
FROM reference r JOIN pg_catalog.pg_class c ON c.oid = r.oid
WHERE r.to_relation AND c.relname <> r.name AND c.oid >= 16384 AND c.relkind IN ('r', 'p', 'v', 'f')
UNION ALL
SELECT DISTINCT 'l', c.relname::pg_catalog.text, other.relname::pg_catalog.text, 'f'
FROM unseen_reference u
JOIN pg_catalog.pg_class c ON c.oid = u.relation
JOIN pg_catalog.pg_class other ON other.oid = u.oid
WHERE u.to_relation AND u.oid <> u.relation AND other.oid >= 16384
UNION ALL
SELECT DISTINCT 'l', parent.relname::pg_catalog.text, c.relname::pg_catalog.text, 'f'
FROM pg_catalog.pg_inherits i
JOIN pg_catalog.pg_class parent ON parent.oid = i.inhparent
JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
WHERE c.relkind IN ('r', 'p', 'f') AND c.oid BETWEEN $FIRST AND $LAST
UNION ALL
SELECT DISTINCT 'l', referenced.relname::pg_catalog.text, c.relname::pg_catalog.text, 'f'
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class referenced ON referenced.oid = k.confrelid
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
WHERE k.contype = 'f' AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))
    AND k.oid BETWEEN $FIRST AND $LAST
UNION ALL
SELECT DISTINCT 'v', e.evtname::pg_catalog.text, p.proname::pg_catalog.text, 'f'
FROM pg_catalog.pg_event_trigger e JOIN pg_catalog.pg_proc p ON p.oid = e.evtfoid
WHERE e.evtenabled <> 'D' AND e.oid BETWEEN $FIRST AND $LAST
