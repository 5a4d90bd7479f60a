DROP SCHEMA IF EXISTS public, other CASCADE;
CREATE SCHEMA public AUTHORIZATION app;
CREATE SCHEMA other AUTHORIZATION app;
GRANT ALL ON SCHEMA public, other TO PUBLIC;
SET SESSION AUTHORIZATION app;
CREATE TABLE t (a int PRIMARY KEY, b text);
INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three');
GRANT ALL ON t TO reader;
CREATE TABLE other.t (a text);
INSERT INTO other.t VALUES ('elsewhere');
CREATE TABLE empty (a int, b text);
CREATE SEQUENCE s;
CREATE SEQUENCE s2 START 100;
CREATE TABLE log (n serial, what text);
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE FUNCTION make_temp(name text) RETURNS void LANGUAGE plpgsql AS
    $$BEGIN EXECUTE format('CREATE TEMP TABLE %I (a int)', name); END$$;
CREATE FUNCTION lock_it(key bigint) RETURNS void LANGUAGE plpgsql AS
    $$BEGIN PERFORM pg_advisory_lock(key); END$$;
CREATE FUNCTION unlock_it(key bigint) RETURNS bool LANGUAGE plpgsql AS
    $$BEGIN RETURN pg_advisory_unlock(key); END$$;
CREATE FUNCTION set_it(name text, value text) RETURNS text LANGUAGE plpgsql AS
    $$BEGIN RETURN set_config(name, value, false); END$$;
CREATE FUNCTION listen_to(channel text) RETURNS void LANGUAGE plpgsql AS
    $$BEGIN EXECUTE format('LISTEN %I', channel); END$$;
CREATE FUNCTION tell(channel text, payload text) RETURNS void LANGUAGE plpgsql AS
    $$BEGIN PERFORM pg_notify(channel, payload); END$$;
CREATE FUNCTION prepare_it() RETURNS void LANGUAGE plpgsql AS
    $$BEGIN EXECUTE 'PREPARE from_function AS SELECT 42'; END$$;
CREATE FUNCTION say(what text) RETURNS int LANGUAGE plpgsql AS
    $$BEGIN RAISE NOTICE '%', what; RETURN 1; END$$;
CREATE FUNCTION fail(state text) RETURNS int LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION 'failed' USING ERRCODE = state, DETAIL = 'a detail', HINT = 'a hint'; END$$;
CREATE FUNCTION take(name text) RETURNS bigint LANGUAGE plpgsql AS
    $$BEGIN RETURN nextval(name); END$$;
CREATE FUNCTION scoped() RETURNS text LANGUAGE plpgsql SET work_mem = '9MB' AS
    $$BEGIN RETURN current_setting('work_mem'); END$$;
CREATE PROCEDURE commit_twice() LANGUAGE plpgsql AS
    $$BEGIN INSERT INTO log (what) VALUES ('one'); COMMIT; INSERT INTO log (what) VALUES ('two'); COMMIT; END$$;
RESET SESSION AUTHORIZATION;
