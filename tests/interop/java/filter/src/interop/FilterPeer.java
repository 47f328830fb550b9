package interop;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.rocketmq.broker.filter.ConsumerFilterData;
import org.apache.rocketmq.broker.filter.ConsumerFilterManager;
import org.apache.rocketmq.broker.filter.MessageEvaluationContext;
import org.apache.rocketmq.filter.FilterFactory;
import org.apache.rocketmq.filter.expression.Expression;
import org.apache.rocketmq.filter.expression.MQFilterException;
import org.apache.rocketmq.filter.util.BitsArray;
import org.apache.rocketmq.filter.util.BloomFilter;

/** Asks Apache's SQL92 filter, bloom filter and filter registration; all texts come as base64 of UTF-8, one a line. */
public final class FilterPeer {
    private static final PrintStream OUT = new PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out), false);

    private FilterPeer() {
    }

    public static void main(String[] arguments) throws Exception {
        System.setOut(System.err); // what Apache's logging says is no answer
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
        switch (arguments[0]) {
            case "evaluate": evaluate(in); break;
            case "bloom": bloom(in); break;
            case "rewrite": rewrite(in); break;
            case "register": register(); break;
            default: throw new IllegalArgumentException(arguments[0]);
        }
        OUT.flush();
    }

    private static String text(String line) {
        return new String(Base64.getDecoder().decode(line), StandardCharsets.UTF_8);
    }

    /** First a number and as many property sets (base64 words by turns name and value), then expressions: an answer line each. */
    private static void evaluate(BufferedReader in) throws Exception {
        int count = Integer.parseInt(in.readLine());
        List<Map<String, String>> sets = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            Map<String, String> set = new HashMap<>();
            String line = in.readLine();
            String[] words = line.isEmpty() ? new String[0] : line.split(" ", -1);
            for (int j = 0; j < words.length; j += 2) {
                set.put(text(words[j]), text(words[j + 1]));
            }
            sets.add(set);
        }
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            OUT.print(answer(text(line), sets) + "\n");
        }
    }

    /** "refused", or a letter a property set: T, F, N for null, E for a failure. */
    private static String answer(String expression, List<Map<String, String>> sets) {
        Expression compiled;
        try {
            compiled = FilterFactory.INSTANCE.get("SQL92").compile(expression);
        } catch (MQFilterException e) {
            return "refused";
        }
        StringBuilder letters = new StringBuilder();
        for (Map<String, String> set : sets) {
            try {
                Object value = compiled.evaluate(new MessageEvaluationContext(set));
                letters.append(value == null ? 'N' : value == Boolean.TRUE ? 'T' : value == Boolean.FALSE ? 'F' : '?');
            } catch (Exception e) {
                letters.append('E');
            }
        }
        return letters.toString();
    }

    /** Lines "errorRate expected text": hash functions, bits, positions, and the bytes with the text's bits set. */
    private static void bloom(BufferedReader in) throws Exception {
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String[] words = line.split(" ", -1);
            BloomFilter filter = BloomFilter.createByFn(Integer.parseInt(words[0]), Integer.parseInt(words[1]));
            BitsArray bits = BitsArray.create(filter.getM());
            filter.hashTo(filter.generate(text(words[2])), bits);
            OUT.print(filter.getK() + " " + filter.getM() + " " + Arrays.toString(filter.calcBitPositions(text(words[2]))).replaceAll("[\\[\\],]", "")
                + " " + Base64.getEncoder().encodeToString(bits.bytes()) + "\n");
        }
    }

    /** Loads a consumerFilter.json (one base64 line) and writes it as the broker does. */
    private static void rewrite(BufferedReader in) throws Exception {
        ConsumerFilterManager manager = new ConsumerFilterManager();
        manager.decode(text(in.readLine()));
        OUT.write(manager.encode(true).getBytes(StandardCharsets.UTF_8));
    }

    /** The file of a few registrations with fixed times; topics and groups are told apart by name. */
    private static void register() throws Exception {
        ConsumerFilterManager manager = new ConsumerFilterManager();
        manager.register("Orders", "audit", "price > 10 AND region = 'e\"u'", "SQL92", 1700000000001L);
        manager.register("T\u00f6pic", "audit", "a IS NOT NULL", "SQL92", 1700000000002L);
        fix(manager.get("Orders", "audit"), 1700000000101L, 0L);
        fix(manager.get("T\u00f6pic", "audit"), 1700000000102L, 4102444800000L);
        OUT.write(manager.encode(true).getBytes(StandardCharsets.UTF_8));
    }

    private static void fix(ConsumerFilterData data, long bornTime, long deadTime) {
        data.setBornTime(bornTime);
        data.setDeadTime(deadTime);
    }
}
